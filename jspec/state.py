"""The values that every layer passes: caches, drafts, verdicts.

In reading order: the `@state` decorator, what a request asks (`Sampling`), the text so far
(`Context`), where new rows go in a cache (`Block`), the cache itself, and the three values of a
round: `Draft`, `TargetOutput`, `Verdict`.

Letters: B rows, T tokens of this call, S cache slots, K key/value heads, H head width, M nodes of
a draft tree (root included), V vocabulary, D model width, E stop ids of a row.

Two conventions hold everywhere. `length` counts committed *text*, and the last
committed token is *pending*: the target has not seen it yet. A cache has no length of its own:
slots `[0, length - 1)` are valid, and node i of a round is written at slot `length - 1 + i`.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any, dataclass_transform

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(flax.struct.field,)
)
def state(cls):
    """A traced value: a frozen, keyword-only Flax struct, exempt from run-time shape checks.

    The exemption matters: JAX rebuilds such values with shardings, abstract shapes or stacked
    arrays in place of the annotated ones. A stdlib dataclass is static, a `@state` is traced.
    """
    return flax.struct.dataclass(typing.no_type_check(cls), kw_only=True)


class StopReason(enum.IntEnum):
    """Why a row ended. On the device `LENGTH` and `MAX_TOKENS` are one limit.

    `WRONG_MODE`: its settings were traced, and its program's mode does not serve them.
    `REFUSED`: the request could not be served; no row ever has it.
    """

    NONE = 0
    STOP_TOKEN = 1
    STOP_STRING = 2
    MAX_TOKENS = 3
    LENGTH = 4
    BAD_LOGITS = 5
    WRONG_MODE = 6
    REFUSED = 7

    @property
    def label(self) -> str:
        return self.name.lower()


@state
class Sampling:
    """What each row asks of the law. Filters at 0 (`top_k`, `min_p`) or 1 (`top_p`) are off.

    Attributes:
      temperature: 0 is greedy; otherwise from 0.01 to 1,000,000.
      top_k: keep the k largest scores, all ties at the k-th included.
      top_p: keep the smallest set of mass at least p, of what top-k left.
      min_p: keep tokens of at least this share of the largest probability.
      seed: with `sample`, names the noise of the row.
      sample: number of the request; one prompt, seed and sample are one text.
      stop_ids: padded with -1.
      max_length: the row stops once its text has this many tokens.
    """

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    seed: UInt[Array, " B"]
    sample: UInt[Array, " B"]
    stop_ids: Int[Array, "B E"]
    max_length: Int[Array, " B"]


@state
class Context:
    """The text of every row.

    Attributes:
      tokens: right-padded; entries at `length` and after are meaningless.
      length: committed tokens, the pending one included.
      is_active: False once a row has ended, or where no request occupies it.
      sampling: what the row asks.
    """

    tokens: Int[Array, "B capacity"]
    length: Int[Array, " B"]
    is_active: Bool[Array, " B"]
    sampling: Sampling

    @property
    def capacity(self) -> int:
        return self.tokens.shape[1]

    @property
    def pending(self) -> Int[Array, " B"]:
        """The last committed token of each row."""
        last = jnp.maximum(self.length - 1, 0)
        return jnp.take_along_axis(self.tokens, last[:, None], axis=1)[:, 0]


@state
class Block:
    """Where T new rows go in a cache, and what each of them may see.

    A window of R >= T slots starts right after the committed prefix. The new rows are the last T
    of it; earlier ones were written before in the same round (a tree that grows level by level).

    Attributes:
      prefix: slots `[0, prefix)` are visible to every new row.
      visible: over the window, slots `prefix .. prefix + R - 1`; a row sees itself.
      positions: place in the text of each window slot. Slots of the prefix sit at their own index.
    """

    prefix: Int[Array, " B"]
    visible: Bool[Array, "B T R"]
    positions: Int[Array, "B R"]

    @property
    def query_positions(self) -> Int[Array, "B T"]:
        return self.positions[:, -self.visible.shape[1] :]

    @property
    def write_start(self) -> Int[Array, " B"]:
        """The slot of the first new row."""
        return self.prefix + (self.visible.shape[2] - self.visible.shape[1])


@state
class KVCache:
    """Keys and values, one pair of arrays a layer, `"B K S H"`; keys are stored rotated.

    No length is kept: what is valid follows from the text (see the module's docstring), so taking
    back is choosing an older length.
    """

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    @property
    def dtype(self) -> jnp.dtype:
        return self.keys[0].dtype


@state
class ShardedArrays:
    """Arrays that lie over a mesh in a way of their own, in the state of a drafter.

    Attributes:
      arrays: any pytree; rows are on axis 0 of every leaf.
      axes: for the dimensions after the rows the mesh axes that they are split over, or None.
        Static. Unlisted dimensions are replicated, as all arrays of a state outside of this are.
    """

    arrays: Any
    axes: tuple[str | tuple[str, ...] | None, ...] = flax.struct.field(
        pytree_node=False, default=()
    )


@state
class Prompt:
    """What a drafter sees once, before the first round.

    Attributes:
      context: the prompt and the first token of the target, which is pending.
      features: the target's named features at prompt positions `[0, length - 1)`, right-padded.
      width: padded length of the prompts; static. Prompt tokens are `context.tokens[:, :width]`.
      slots: cache slots the target has; a drafter's own cache is sized after it. Static.
    """

    context: Context
    features: dict[str, Float[Array, "B T D"]]
    width: int = flax.struct.field(pytree_node=False)
    slots: int = flax.struct.field(pytree_node=False)


@state
class Draft:
    """A tree of proposed tokens for every row. Node 0 is the pending token; a chain is a tree.

    Attributes:
      token: node tokens; parents come before children, valid siblings carry different tokens.
      parent: index of the parent; 0 for the root itself.
      depth: 0 for the root, whose children are at depth 1.
      is_valid: the node is scored by the target. The root always is.
      is_acceptable: the walk may step to it. False on rider nodes, which are scored only.
      logprobs: the whole processed row that a node's token was drawn from, natural logarithm, or
        None for a deterministic proposal. Read by the rejection rule only.
    """

    token: Int[Array, "B M"]
    parent: Int[Array, "B M"]
    depth: Int[Array, "B M"]
    is_valid: Bool[Array, "B M"]
    is_acceptable: Bool[Array, "B M"]
    logprobs: Float[Array, "B M V"] | None = None


@state
class TargetOutput:
    """What the target's forward over a draft leaves for the drafter's `commit`.

    Attributes:
      features: by name; `"enter.i"` is the residual entering layer i, `"final"` comes after the
        final norm.
      picks: the law's token at every node, where the drafter asks for it.
    """

    features: dict[str, Float[Array, "B M D"]]
    picks: Int[Array, "B M"] | None = None


@state
class TokenTrace:
    """Where each emitted token of a round came from; entries past `n_emitted` are meaningless.

    Attributes:
      depth: depth of the drafted node it was, 0 for the target's own token.
      rank: place among the valid siblings of that node, -1 for the target's own token.
      logprob: log-probability under the row's law (temperature and filters applied; at
        temperature 0 of the plain softmax), nats.
      gap: score of the pick less that of the runner-up.
    """

    depth: Int[Array, "B W"]
    rank: Int[Array, "B W"]
    logprob: Float[Array, "B W"]
    gap: Float[Array, "B W"]


@state
class Verdict:
    """The result of acceptance, a row each. `Dmax` is the depth of the draft.

    Attributes:
      path: accepted nodes, from the root (`path[:, 0] == 0`); entries past `n_accepted` repeat
        the last accepted node.
      tokens: what is emitted: the accepted tokens, then the target's own.
      n_accepted: drafted tokens kept; never counts the target's own token.
      next_token: the target's own token, which is pending after the round.
      n_emitted: `n_accepted + 1`; `n_accepted` where the logits were bad; 0 on inactive rows.
      stop_reason: a `StopReason`, `NONE` where the row goes on.
      trace: only where asked for.
    """

    path: Int[Array, "B Dmax1"]
    tokens: Int[Array, "B Dmax1"]
    n_accepted: Int[Array, " B"]
    next_token: Int[Array, " B"]
    n_emitted: Int[Array, " B"]
    stop_reason: Int[Array, " B"]
    trace: TokenTrace | None = None


Params = Any
"""A pytree of arrays: plain nested dicts and tuples, never a module."""

replace = dataclasses.replace
