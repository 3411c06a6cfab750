"""Load a Falcon drafter from its directory, fitted to a target.

A directory holds the head (see `checkpoint.py`), and may hold `tree.yaml`, the tree that was fitted
to it, and `token_counts.safetensors`, how often its training saw each token.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.params import place
from jspec.checkpoints.target import Target, checkpoint_beside
from jspec.checkpoints.tensor_files import open_safetensors
from jspec.drafters.base import DrafterOptions, Method
from jspec.drafters.falcon import checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import Tree, find
from jspec.errors import UserError
from jspec.models import sar_head
from jspec.models.sar_head import SarConfig, SarModel
from jspec.models.weights import sharded_shapes
from jspec.sharding import REPLICATED
from jspec.state import Params

TREE_FILE = "tree.yaml"
COUNTS_FILE = "token_counts.safetensors"
LARGEST_TREE = "kmask2_8layer_tree"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconOptions(DrafterOptions):
    """Hold what a config may say of a Falcon drafter.

    Attributes:
      tree: a released tree's name, `chain-N`, or a file of paths; if not given, the one that was
        fitted to the head, or else the largest released one.
      block_align: "right", or "left" as the released code counts blocks.
      draft_vocabulary: draft only so many tokens, the most frequent ones of the head's training;
        0 drafts all.
    """

    tree: str = ""
    block_align: str = "right"
    draft_vocabulary: int = 0

    def __post_init__(self):
        if self.block_align not in ("right", "left"):
            raise ValueError(f"block_align must be right or left, got {self.block_align!r}")


def load(path, target: Target, options: FalconOptions) -> tuple[Falcon, Params]:
    """Load a trained head with its tree, in the target's dtype and on its mesh, or its shapes.

    Raises:
      UserError: a tree that is not there, a vocabulary that does not fit it, or a head of another
        target.
    """
    found = checkpoint_beside(target, path)
    directory = found.files
    config = checkpoint.read_config(found)
    _check_target(directory, config, target)
    drafter = Falcon(
        model=sar_head.build(config),
        target=target.model,
        tree=_tree(directory, options.tree),
        block_align=options.block_align,
    )
    size, widest = options.draft_vocabulary, max(one.width for one in drafter.plan.passes)
    reduced = _reduced(directory, target, size) if size else {}
    n_drafted = size or target.vocab_size
    if n_drafted < widest:
        raise UserError(
            f"the tree takes the best {widest} tokens of a row, and {n_drafted} are drafted: give "
            "a narrower tree or a larger draft_vocabulary"
        )
    params = {"head": _head(found, drafter.model, target), "target": target.params}
    return drafter, params | reduced


def _head(found: Checkpoint, model: SarModel, target: Target) -> Params:
    """Read the head's weights, checked against the target's; or their shapes."""
    if target.is_abstract:
        shapes = sar_head.abstract_params(model, target.dtype)
        return sharded_shapes(shapes, target.mesh, REPLICATED, checkpoint.HEAD_AXES)
    checkpoint.check_embedding(found, target.params["embedding"])
    return checkpoint.read_params(found, model.config, model, dtype=target.dtype, mesh=target.mesh)


def _tree(directory: Path, name: str) -> Tree:
    fitted = directory / TREE_FILE
    if not name:
        name = str(fitted) if fitted.is_file() else LARGEST_TREE
    return find(name)


def _check_target(directory: Path, config: SarConfig, target: Target) -> None:
    ours, theirs = config.decoder, target.model.config
    for what, head, model in (
        ("hidden size", ours.width, theirs.width),
        ("vocabulary", ours.vocab_size, theirs.vocab_size),
    ):
        if head != model:
            raise UserError(
                f"{directory} was trained for a target with a {what} of {head}, this one has "
                f"{model}; give the target that the drafter was trained for"
            )


def _reduced(directory: Path, target: Target, size: int) -> dict[str, Params]:
    """Find the most frequent tokens, ascending, and their part of the target's head, `"D size"`."""
    if not 1 <= size <= target.vocab_size:
        raise UserError(
            f"draft_vocabulary {size}: expected 0 or a number up to the {target.vocab_size} tokens "
            "of the vocabulary"
        )
    file = directory / COUNTS_FILE
    if not file.is_file():
        raise UserError(
            f"draft_vocabulary needs {file}, which python -m jspec.train writes; leave it out"
        )
    tensors = open_safetensors(file)
    counts = tensors["counts"].read() if "counts" in tensors else np.zeros(0)
    if counts.shape != (target.vocab_size,):
        raise UserError(
            f"{file}: expected a tensor `counts` of {target.vocab_size} numbers, one a token; "
            "give the file that was written with the head"
        )
    ids = np.sort(np.argsort(-counts.astype(np.int64), kind="stable")[:size]).astype(np.int32)
    if target.is_abstract:
        shape = (target.model.config.width, size)
        return {
            "ids": jax.ShapeDtypeStruct(ids.shape, ids.dtype),
            "rows": jax.ShapeDtypeStruct(shape, jnp.dtype(target.dtype)),
        }
    placed = place(ids, ids.dtype, NamedSharding(target.mesh, PartitionSpec()))
    return {"ids": placed, "rows": head_rows(target, placed)}


def head_rows(target: Target, ids: Int[Array, " R"]) -> Float[Array, "D R"]:
    """Take the part of a target's head that scores these tokens."""
    if target.model.config.has_tied_head:
        return jnp.take(target.params["embedding"], ids, axis=0).T
    return jnp.take(target.params["head_weight"], ids, axis=1)


METHOD = Method(
    options=FalconOptions,
    load=load,
    needs="a trained head: give its path (drafter_path), a directory or a hub id",
)
