"""Read the prefix on a GPU by cuDNN's attention, which stops at each row's length.

The cache `[B, K, S, H]` is seen as many short sequences of one head: every key/value head of every
row, cut into parts that lie side by side, so that a batch of one row still occupies the card. All
of these are views, and nothing is copied. Parts are merged by their log-sum-exp, as the prefix is
with the round's own rows.

Not run on a card yet. Ahead of time it compiles for H100 without copies of the cache; what cuDNN
needs beside it is known on the card only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jspec.ops.attention.masked import MASKED
from jspec.ops.attention.partial import AttentionShape, Partial, attend_part
from jspec.ops.linear import wide_dtype
from jspec.ops.platform import is_interpreted

IS_DIVIDED_BY_XLA = False

PART = 1024
"""Slots of a part, at least."""

SEQUENCES = 128
"""Sequences from which on a card is occupied: an H100 has 132 processors."""


def check(shape: AttentionShape) -> None:
    """Refuse what cuDNN does not serve.

    Raises:
      NotImplementedError: a sliding window, the type or the head's width, or there is no cuDNN.
    """
    if shape.has_window:
        raise NotImplementedError("a window that slides hides slots in each row's own way")
    if is_interpreted():
        return
    if shape.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"cuDNN attends in bfloat16 and float16, not {shape.dtype}")
    if shape.head_dim % 8 or shape.head_dim > 128:
        raise NotImplementedError(f"heads of {shape.head_dim}: a multiple of 8 up to 128")
    try:
        from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

        check_cudnn_version()
    except (ImportError, RuntimeError) as error:
        raise NotImplementedError(f"there is no cuDNN to use: {error}") from None


def attend_prefix(
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    prefix: Int[Array, " B"],
    first: Int[Array, "B R"] | None,
) -> Partial:
    """Attend to the slots that come before `prefix`."""
    assert first is None, "refused by `check`"
    B, K, R, H = queries.shape
    S = keys.shape[2]
    P = n_parts(B * K, S)
    starts = jnp.arange(P, dtype=jnp.int32) * (S // P)
    live = jnp.clip(prefix[:, None] - starts[None], 0, S // P)
    lengths = jnp.broadcast_to(live[:, None], (B, K, P)).reshape(-1)
    repeated = jnp.broadcast_to(queries[:, :, None], (B, K, P, R, H)).reshape(-1, R, H)
    mixed, sums = _attend(
        repeated,
        keys.reshape(B * K * P, S // P, H),
        values.reshape(B * K * P, S // P, H),
        jnp.maximum(lengths, 1),
    )
    # What comes of an empty part is not defined: it weighs nothing. The sums are float32 in cuDNN;
    # jax.nn rounds them to the queries' type, which XLA leaves out where they are widened again.
    wide = wide_dtype(keys.dtype)
    is_empty = (live == 0)[:, None, :, None]
    largest = sums.astype(wide).reshape(B, K, P, R)
    largest = jnp.where(is_empty, MASKED, largest)
    parts = mixed.reshape(B, K, P, R, H).astype(wide)
    parts = jnp.where(is_empty[..., None], 0, parts)
    top = jnp.max(largest, axis=2)
    weight = jnp.where(is_empty, 0, jnp.exp(largest - top[:, :, None]))
    return Partial(
        mixed=jnp.sum(parts * weight[..., None], axis=2),
        largest=top,
        total=jnp.sum(weight, axis=2),
    )


def _attend(
    queries: Float[Array, "X R H"],
    keys: Float[Array, "X S H"],
    values: Float[Array, "X S H"],
    lengths: Int[Array, " X"],
) -> tuple[Float[Array, "X R H"], Float[Array, "X R"]]:
    """Attend to the first slots of each sequence: what they mix to, and the log-sum-exp of scores.

    Interpreted, it is the same in plain products.
    """
    if is_interpreted():
        live = jnp.arange(keys.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
        part = attend_part(queries[:, None], keys[:, None], values[:, None], live[:, None])
        mixed = part.mixed / part.total[..., None]
        return mixed[:, 0], (part.largest + jnp.log(part.total))[:, 0]
    mixed, sums = jax.nn.dot_product_attention(
        queries[:, :, None],
        keys[:, :, None],
        values[:, :, None],
        key_value_seq_lengths=lengths,
        implementation="cudnn",
        return_residual=True,
    )
    return mixed[:, :, 0], sums[..., 0]


def n_parts(sequences: int, slots: int) -> int:
    """Into how many equal parts the slots are cut."""
    parts = 1
    while (
        sequences * parts < SEQUENCES and slots % (2 * parts) == 0 and slots // (2 * parts) >= PART
    ):
        parts *= 2
    return parts
