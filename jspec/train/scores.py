"""Scores tokens for a loss: all of them, or only those that will be drafted.

Frozen weights are a teacher's, and with a reduced draft vocabulary two more beside them: the tokens
that are drafted (`DRAFT_IDS`) and the teacher's part of its head that scores them (`DRAFT_ROWS`). A
loss then compares distributions over these tokens alone, the teacher's renormalised over them.

In reading order: the frozen weights, the scores of a learner and of its teacher, the teacher's
choice among all tokens, and where a token is among those that are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jspec.checkpoints.draft_vocabulary import head_rows
from jspec.models.model import Model, head
from jspec.models.weights import SHARED
from jspec.ops.linear import wide_project
from jspec.state import Params
from jspec.train.parts import Parts

DRAFT_IDS, DRAFT_ROWS = "draft_ids", "draft_rows"

Scorer = Callable[[Float[Array, "B R D"]], Float[Array, "B R U"]]
"""Makes logits of rows after a final norm, of the tokens that are scored."""


def with_draft_ids(frozen: Params, ids: Int[Array, " U"]) -> Params:
    """Add the tokens that are drafted, and the part of a teacher's head that scores them.

    Args:
      frozen: a teacher's weights.
      ids: ascending.
    """
    return {**frozen, DRAFT_IDS: ids, DRAFT_ROWS: jax.jit(head_rows)(frozen, ids)}


def draft_ids_of(frozen: Params) -> Int[Array, " U"] | None:
    """Find the tokens that are drafted; None for all."""
    return None if frozen is None else frozen.get(DRAFT_IDS)


def teacher_weights(frozen: Params) -> Params:
    """Take the teacher's own weights out of what is frozen."""
    return {name: leaf for name, leaf in frozen.items() if name not in (DRAFT_IDS, DRAFT_ROWS)}


def completed(params: Params, frozen: Params) -> Params:
    """Add to a learner's weights the embedding and the head that it shares with its teacher."""
    if "embedding" in params:
        return params
    return {**params, **{name: frozen[name] for name in SHARED if name in frozen}}


# --- scores --------------------------------------------------------------------------------------


def parts_of(
    shape: tuple[int, ...], model: Model, frozen: Params, rows: NamedSharding | None
) -> Parts:
    """Cut rows so that the logits of the tokens that are scored are never all there at once."""
    ids = draft_ids_of(frozen)
    if ids is None:
        return Parts.of(shape, model.config.vocab_size, rows)
    return Parts.of(shape, ids.shape[0], rows, may_split=False)


def own_scorer(params: Params, model: Model, frozen: Params, parts: Parts) -> Scorer:
    """Make a learner's scores, by a head of its own or the one that it shares."""
    ids = draft_ids_of(frozen)
    if ids is None:
        return functools.partial(head, parts.weights(completed(params, frozen), model), model)
    part = head_rows(params, ids) if "embedding" in params else frozen[DRAFT_ROWS]
    return functools.partial(_scores, part)


def teacher_scorer(frozen: Params, teacher: Model, parts: Parts) -> Scorer:
    """Make a teacher's scores, which are not followed by a gradient to its weights."""
    if DRAFT_ROWS in frozen:
        return functools.partial(_scores, frozen[DRAFT_ROWS])
    return functools.partial(head, parts.weights(teacher_weights(frozen), teacher), teacher)


def _scores(part: Params, hidden: Float[Array, "B R D"]) -> Float[Array, "B R U"]:
    with jax.named_scope("head"):
        return wide_project("BTD,DU->BTU", hidden, part)


def chosen_of_all(
    frozen: Params,
    teacher: Model,
    features: Float[Array, "B T D"],
    rows_sharding: NamedSharding | None,
) -> Int[Array, "B T"]:
    """Find a teacher's likeliest token at every row, among all of its vocabulary."""
    weights = teacher_weights(frozen)
    parts = Parts.of(features.shape[:2], teacher.config.vocab_size, rows_sharding)
    weights = parts.weights(weights, teacher)
    return parts.map(lambda rows: jnp.argmax(head(weights, teacher, rows), axis=-1), features)


def places_of(
    ids: Int[Array, " U"], tokens: Int[Array, "*X"]
) -> tuple[Int[Array, "*X"], Bool[Array, "*X"]]:
    """Find where tokens are among ascending ids, and whether they are."""
    places = jnp.minimum(jnp.searchsorted(ids, tokens), ids.shape[0] - 1).astype(jnp.int32)
    return places, jnp.take(ids, places) == tokens
