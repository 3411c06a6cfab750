"""Draft over a part of the target's vocabulary: the tokens that training learnt most often.

The product with the head is most of what a small drafter computes. Over U of V tokens it is U / V
as much, and the tokens that are left out are merely never drafted. With U = 3 of V = 6 tokens:

    token            0   1   2   3   4   5
    learnt           9   0   4   1   7   2
    drafted          x       x       x        ids = [0, 2, 4], and these columns of the head

A drafter with such a vocabulary has `ids` in its parameters, ascending, and the head's part of
them: logits, scores and places of the best are over U, tokens are `tokens_at` places.

In reading order: the option; `choose_ids`, and the head's part of them; `reduce_model`, for a
drafter that is a model; `tokens_at`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.draft_vocabulary import draft_ids, draft_size, head_rows
from jspec.checkpoints.params import place
from jspec.checkpoints.target import Target
from jspec.drafters.base import DrafterOptions
from jspec.errors import UserError
from jspec.models.model import Model, build
from jspec.models.weights import AXES
from jspec.ops.linear import Weight
from jspec.sharding import REPLICATED, Table, sharding
from jspec.state import Params

IDS = "ids"
"""Where the parameters of a drafter have them."""

Ids = Int[Array, " U"] | None
"""Tokens that are drafted, ascending; all if None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyOptions(DrafterOptions):
    """Say how many tokens are drafted.

    Attributes:
      draft_vocabulary: draft only so many tokens, those that the drafter's training learnt most
        often;
        0 drafts all. If not given, as many as `draft_vocab_size` of its `config.json` says, or all.
    """

    draft_vocabulary: int | None = None

    def __post_init__(self):
        super().__post_init__()
        given = self.draft_vocabulary
        if given is not None and (type(given) is not int or given < 0):
            raise ValueError(
                f"draft_vocabulary must be how many tokens are drafted, 0 for all, got {given!r}"
            )


def choose_ids(
    checkpoint: Checkpoint,
    target: Target,
    options: VocabularyOptions,
    *,
    n_known: int | None = None,
    width: int = 1,
) -> Ids:
    """Choose what is drafted; of an abstract target, its shape.

    Args:
      checkpoint: the drafter's, with the counts of its training.
      n_known: ids that the drafter's model has; the target's if not given.
      width: how many of the best tokens of a row are drafted.

    Raises:
      UserError: more tokens than there are, or fewer than the width; no counts, or those of another
        vocabulary.
    """
    size = options.draft_vocabulary
    if size is None:
        size = draft_size(checkpoint.values, checkpoint.where)
    n_drafted = size or target.vocab_size
    if n_drafted < width:
        raise UserError(
            f"the tree takes the best {width} tokens of a row, and {n_drafted} are drafted: give a "
            "narrower tree or a larger draft_vocabulary"
        )
    if not size:
        return None
    ids = draft_ids(checkpoint.files, target.vocab_size, size, n_known)
    everywhere = NamedSharding(target.mesh, PartitionSpec())
    if target.is_abstract:
        shape: Any = jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=everywhere)
        return shape
    return place(ids, ids.dtype, everywhere)


def placed_rows(
    params: Params, ids: Int[Array, " U"], mesh: Mesh, table: Table = REPLICATED
) -> Weight:
    """Put `head_rows` where a drafter of this table wants them; of shapes, their shapes."""
    shapes = jax.eval_shape(head_rows, params, ids)
    axes = AXES["head_weight"]
    where = jax.tree.map(lambda leaf: sharding(mesh, table, axes, leaf.shape), shapes)
    if not isinstance(ids, jax.ShapeDtypeStruct):
        return jax.jit(head_rows, out_shardings=where)(params, ids)

    def shape_at(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape_at, shapes, where)


def reduce_model(
    model: Model,
    params: Params,
    checkpoint: Checkpoint,
    target: Target,
    options: VocabularyOptions,
    *,
    width: int = 1,
    table: Table = REPLICATED,
) -> tuple[Model, Params, dict[str, Int[Array, " U"]]]:
    """Give a drafter's model a head of its own over what is drafted, in place of its whole one.

    Args:
      checkpoint: the model's.
      width, table: as in `choose_ids` and `placed_rows`.

    Returns:
      The model, its parameters, and `ids` for the parameters of the drafter; nothing is changed and
      there are no `ids` where all tokens are drafted.

    Raises:
      UserError: as `choose_ids`.
    """
    n_known = model.config.vocab_size
    ids = choose_ids(checkpoint, target, options, n_known=n_known, width=width)
    if ids is None:
        return model, params, {}
    rows = placed_rows(params, ids, target.mesh, table)
    return *with_head(model, params, rows), {IDS: ids}


def with_head(model: Model, params: Params, rows: Weight) -> tuple[Model, Params]:
    """Put some rows of a head in the place of the whole, tied or not."""
    own = build(dataclasses.replace(model.config, has_tied_head=False))
    return own, params | {"head_weight": rows}


def split_ids(params: Params) -> tuple[Params, Ids]:
    """Take `ids` out of the parameters of a drafter that is a model."""
    return {name: part for name, part in params.items() if name != IDS}, params.get(IDS)


def tokens_at(places: Int[Array, "*B"], ids: Ids) -> Int[Array, "*B"]:
    """Find the tokens at places of what is drafted."""
    return (places if ids is None else jnp.take(ids, places)).astype(jnp.int32)
