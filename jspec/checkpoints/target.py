"""A target: a model with its weights on their devices.

In reading order: the value, loading one, the shapes of one, and whether a drafter's model, which
`beside.py` loads, speaks the same tokens.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.arguments import shown
from jspec.checkpoints.checkpoint import GENERATION_FILE, Checkpoint, find_checkpoint
from jspec.checkpoints.gguf.file import is_gguf
from jspec.checkpoints.number_types import QUANTISED, NumberTypes, number_types
from jspec.checkpoints.params import read_params
from jspec.checkpoints.tensor_files import read_json
from jspec.checkpoints.tokenizer.gguf import gguf_pieces
from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, abstract_params, build
from jspec.models.weights import (
    count_weights,
    fit_to_mesh,
    narrow_shapes,
    sharded_shapes,
)
from jspec.sharding import TARGET, Table, make_mesh
from jspec.state import Params
from jspec.text_files import read_text

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A loaded model.

    Attributes:
      model: static; its key/value heads may be repeated to fit the mesh.
      params: the weights; of an abstract target, their shapes and places.
      dtype: the model's type, by name: of its cache and its weights.
      weights: type of its matrices where that is another, a name of `WEIGHT_TYPES`.
      mesh: where they are.
      checkpoint: where it comes from; None for a model made in memory.
      stop_ids: tokens that end a text, from the checkpoint.
      max_length: longest text in tokens, prompt included.
    """

    model: Model
    params: Params
    dtype: str
    mesh: Mesh
    checkpoint: Checkpoint | None
    stop_ids: tuple[int, ...]
    max_length: int
    weights: str | None = None

    @property
    def path(self) -> Path | None:
        """The directory of its files, or its GGUF file; None where it has none."""
        return self.checkpoint and self.checkpoint.path

    @property
    def types(self) -> NumberTypes:
        return NumberTypes(self.dtype, self.weights)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    def __repr__(self) -> str:
        n_weights = f"{count_weights(self.params):,} weights"
        where = str(self.path or "in memory")
        parts = [where, self.model.config.summary, n_weights, str(self.types)]
        if self.mesh.size > 1:
            parts.append("mesh " + " x ".join(f"{k}={n}" for k, n in self.mesh.shape.items()))
        return f"Target({', '.join(parts)}{', shapes only' if self.is_abstract else ''})"

    @property
    def is_abstract(self) -> bool:
        """Tell whether only shapes are known: such a target is for planning."""
        return isinstance(jax.tree.leaves(self.params)[0], jax.ShapeDtypeStruct)


def load_target(
    path_or_id: str | Path | Checkpoint,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    table: Table = TARGET,
    weights: str | None = None,
) -> Target:
    """Load a checkpoint onto a mesh, as a model that decodes from left to right.

    Args:
      path_or_id: a Hugging Face directory (safetensors, or `.bin` with torch), a llama2.c-style
        one, a GGUF file, an id on the hub, or a checkpoint that was found.
      dtype: type of weights and cache: float32, bfloat16 (or float64, with x64 enabled), or auto
        (`number_types`).
      mesh: from `jspec.make_mesh`; one device where None.
      table: where logical axes go on the mesh.
      weights: type of the matrices, where it is not `dtype`: int8, fp8 or int4, with a scale for
        every output channel, or bfloat16. What the rest of the model computes stays in `dtype`.

    Raises:
      UserError: everything that can be wrong with the arguments or the files, and a model that
        reads in both directions.
    """
    target = load_model(
        path_or_id, dtype=dtype, mesh=mesh, table=table, weights=weights, must_be_causal=True
    )
    if target.weights in QUANTISED and target.mesh.devices.flat[0].platform == "cpu":
        logger.warning("%s weights save memory on a CPU, and no time", target.weights)
    return target


def load_model(
    path_or_id: str | Path | Checkpoint,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    table: Table = TARGET,
    weights: str | None = None,
    must_be_causal: bool = False,
    shared: Params | None = None,
) -> Target:
    """Load a checkpoint that may also be bidirectional, as `load_target` does.

    Args:
      shared: another model's embedding and head, which the checkpoint does not have; see
        `read_params`.
      must_be_causal: refuse a bidirectional model before its weights are read.
    """
    mesh = make_mesh() if mesh is None else mesh
    if not isinstance(mesh, Mesh):
        raise UserError(f"mesh: expected what jspec.make_mesh returns, given {shown(mesh)}")
    types = number_types(dtype, weights, platform=mesh.devices.flat[0].platform)
    checkpoint = find_checkpoint(path_or_id)
    if must_be_causal:
        check_causal(checkpoint)
    model = build(fit_to_mesh(_sharing(checkpoint.config, shared), mesh, table))
    params = read_params(
        checkpoint,
        model,
        dtype=types.dtype,
        mesh=mesh,
        table=table,
        weights=types.weights,
        shared=shared,
    )
    penalty = checkpoint.generation.get("repetition_penalty")
    if penalty not in (None, 1, 1.0):  # the law has no memory
        path = f"{checkpoint.where}/{GENERATION_FILE}"
        logger.warning("%s: repetition_penalty %s is ignored", path, penalty)
    return _target(model, params, types, mesh, checkpoint)


def _sharing(config: DecoderConfig, shared: Params | None) -> DecoderConfig:
    """Tie the head to the embedding as it is in the model that shares them."""
    if shared is None:
        return config
    return dataclasses.replace(config, has_tied_head="head_weight" not in shared)


def _target(
    model: Model,
    params: Params,
    types: NumberTypes,
    mesh: Mesh,
    checkpoint: Checkpoint | None,
) -> Target:
    return Target(
        model=model,
        params=params,
        dtype=types.dtype,
        weights=types.weights,
        mesh=mesh,
        checkpoint=checkpoint,
        stop_ids=() if checkpoint is None else checkpoint.stop_ids,
        max_length=model.config.max_length,
    )


def abstract_target(
    model: Checkpoint | DecoderConfig,
    *,
    dtype: str,
    mesh: Mesh,
    table: Table = TARGET,
    weights: str | None = None,
    shared: Params | None = None,
) -> Target:
    """Build what loading a model would give, its weights being shapes.

    Args:
      model: a checkpoint, or the config of a model without one.
      shared: as in `load_model`, shapes.

    Raises:
      UserError: heads that the mesh does not divide.
    """
    checkpoint = model if isinstance(model, Checkpoint) else None
    config = _sharing(model.config if isinstance(model, Checkpoint) else model, shared)
    fitted = build(fit_to_mesh(config, mesh, table))
    types = number_types(dtype, weights, platform=mesh.devices.flat[0].platform)
    whole = abstract_params(fitted, jnp.dtype(types.dtype))
    shapes = narrow_shapes(whole, config, types.weights, mesh)
    params = sharded_shapes(shapes, mesh, table) | (shared or {})
    return _target(fitted, params, types, mesh, checkpoint)


def check_same_tokenizer(target: Target, drafter: Target) -> None:
    """Refuse a drafter whose token ids mean something else.

    Where both checkpoints carry a tokenizer their vocabularies are compared, since published sizes
    differ by padding within a series; otherwise the sizes have to be equal, unless only shapes are
    planned with.

    Raises:
      UserError: with both sizes, or the first token that differs.
    """
    ours, theirs = _vocabulary(target), _vocabulary(drafter)
    if ours is None or theirs is None:
        if target.vocab_size != drafter.vocab_size and not target.is_abstract:
            raise UserError(
                f"the drafter has a vocabulary of {drafter.vocab_size} and the target one of "
                f"{target.vocab_size}; choose a drafter with the target's tokenizer"
            )
        return
    shared = ours.keys() & theirs.keys()
    different = next((token for token in shared if ours[token] != theirs[token]), None)
    if different is not None or len(shared) < 0.99 * len(ours):
        example = (
            f" ({different!r} is {theirs[different]}, not {ours[different]})"
            if (different is not None)
            else ""
        )
        raise UserError(
            f"the drafter's tokenizer is not the target's{example}; "
            "choose a drafter of the same series"
        )


def count_ids(model: Target) -> int:
    """Count the tokens; beyond them a model's embedding may have rows of padding."""
    pieces = _vocabulary(model)
    return min(max(pieces.values()) + 1, model.vocab_size) if pieces else model.vocab_size


def _vocabulary(model: Target) -> dict[str, int] | None:
    """List pieces and ids as the checkpoint's own files do; None where it has none."""
    if model.path is None:
        return None
    if is_gguf(model.path):
        return gguf_pieces(model.path)
    fast, pieces = model.path / "tokenizer.json", model.path / "tokenizer.model"
    listed, added = model.path / "vocab.json", model.path / "added_tokens.json"
    try:
        if fast.exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_str(read_text(fast)).get_vocab()
        if pieces.exists():
            from sentencepiece import SentencePieceProcessor

            processor = SentencePieceProcessor(model_file=str(pieces))
            return {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
        if listed.exists():
            return read_json(listed) | (read_json(added) if added.exists() else {})
    except Exception as error:  # both libraries raise bare Exceptions and RuntimeErrors
        raise UserError(f"the tokenizer in {model.path} cannot be read: {error}") from None
    return None


def check_causal(checkpoint: Checkpoint) -> None:
    """Refuse a model that cannot decode from left to right.

    Raises:
      UserError: rows of the model see what comes after them.
    """
    config = checkpoint.config
    if not config.is_causal:
        raise UserError(
            f"{checkpoint.where}: a {config.family} model that reads in both directions cannot be "
            "decoded from left to right; give a causal model here, this one as a diffusion drafter"
        )
