"""Load a Falcon drafter from its directory, fitted to a target.

A directory holds the head (see `checkpoint.py`), and may hold `tree.yaml`, the tree that was fitted
to it, and how often its training saw each token (see `jspec.checkpoints.token_counts`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jspec.checkpoints.beside import check_made_for, checkpoint_beside
from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.target import Target
from jspec.drafters.base import Method
from jspec.drafters.draft_vocabulary import IDS, VocabularyOptions, choose_ids, placed_rows
from jspec.drafters.falcon import checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import Tree, find
from jspec.models import sar_head
from jspec.models.sar_head import SarModel
from jspec.models.weights import sharded_shapes
from jspec.ops.linear import Quantised
from jspec.sharding import REPLICATED
from jspec.state import Params

TREE_FILE = "tree.yaml"
LARGEST_TREE = "kmask2_8layer_tree"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconOptions(VocabularyOptions):
    """Hold what a config may say of a Falcon drafter.

    Attributes:
      tree: a released tree's name, `chain-N`, or a file of paths; if not given, the one that was
        fitted to the head, or else the largest released one.
      block_align: "right", or "left" as the released code counts blocks.
    """

    tree: str = ""
    block_align: str = "right"

    def __post_init__(self):
        super().__post_init__()
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
    check_made_for(found, target, config.decoder.width, config.decoder.vocab_size)
    drafter = Falcon(
        model=sar_head.build(config),
        target=target.model,
        tree=_tree(directory, options.tree),
        block_align=options.block_align,
    )
    widest = max(one.width for one in drafter.plan.passes)
    ids = choose_ids(found, target, options, width=widest)
    params = {"head": _head(found, drafter.model, target), "target": target.params}
    if ids is not None:
        params |= {IDS: ids, "rows": placed_rows(target.params, ids, target.mesh)}
    return drafter, params


def _head(found: Checkpoint, model: SarModel, target: Target) -> Params:
    """Read the head's weights, checked against the target's; or their shapes."""
    if target.is_abstract:
        shapes = sar_head.abstract_params(model, target.dtype)
        return sharded_shapes(shapes, target.mesh, REPLICATED, checkpoint.HEAD_AXES)
    embedding = target.params["embedding"]
    if not isinstance(embedding, Quantised):  # whose numbers are no longer the checkpoint's
        checkpoint.check_embedding(found, embedding)
    return checkpoint.read_params(found, model.config, model, dtype=target.dtype, mesh=target.mesh)


def _tree(directory: Path, name: str) -> Tree:
    fitted = directory / TREE_FILE
    if not name:
        name = str(fitted) if fitted.is_file() else LARGEST_TREE
    return find(name)


METHOD = Method(
    options=FalconOptions,
    load=load,
    needs="a trained head: give its path (drafter_path), a directory or a hub id",
)
