"""Falcon's head: golden outputs of the released code, and its two forwards."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.models.config import DecoderConfig
from jspec.models.model import empty_cache
from jspec.models.sar_head import (
    HeadMemory,
    LstmMode,
    SarConfig,
    forward,
    forward_text,
    mix,
    no_memory,
)
from jspec.ops.masks import relaxed_window
from jspec.state import Block, KVCache
from tests.support.golden_head import (
    D,
    F,
    Golden,
    V,
    golden,
    golden_features,
    golden_target_head,
    golden_tokens,
)
from tests.support.tolerances import tolerance

SLOTS = 12
POINTWISE, SEQUENCE = LstmMode.POINTWISE, LstmMode.SEQUENCE
CLOSE = tolerance("float32").logits


def inputs(head: Golden, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Embeddings and features of the golden text, a batch of one."""
    return head.embedding[golden_tokens(tokens)][None], jnp.asarray(golden_features(tokens))[None]


@functools.partial(jax.jit, static_argnames="model")
def draft(params, model, cache, embeddings, features, block, memory=None):
    mixed, memory = mix(params, model, embeddings, features, memory)
    out, cache = forward(params, model, cache, mixed, block)
    return out, cache, mixed, memory


@functools.partial(jax.jit, static_argnames=("model", "remat"))
def text(params, model, embeddings, features, segments, positions, remat=False):
    return forward_text(params, model, embeddings, features, segments, positions, remat=remat)


def relaxed_block(prefix: int, tokens: int, k: int, align: str = "left") -> Block:
    """T rows of text after the prefix, the short block last or first."""
    start = jnp.asarray([tokens % k if align == "right" else 0], jnp.int32)
    return Block(
        prefix=jnp.asarray([prefix], jnp.int32),
        visible=relaxed_window(tokens, k, start, jnp.asarray([tokens], jnp.int32)),
        positions=prefix + jnp.arange(tokens, dtype=jnp.int32)[None],
    )


def over_cache(head: Golden, tokens: int, *, cuts: tuple[int, ...] = (), align: str = "left"):
    """Outputs `[T, D]` of the golden text, in calls that end at `cuts`, and the cache."""
    cache = empty_cache(head.model.config.decoder, 1, SLOTS, jnp.float32)
    memory = no_memory(head.model, 1, jnp.float32)
    embeddings, features = inputs(head, tokens)
    outs, k = [], head.model.config.block_size
    for start, end in zip((0, *cuts), (*cuts, tokens), strict=True):
        rows = slice(start, end)
        block = relaxed_block(start, end - start, k, align)
        out, cache, _, after = draft(
            head.params, head.model, cache, embeddings[:, rows], features[:, rows], block, memory
        )
        if after is not None:
            memory = HeadMemory(hidden=after.hidden[:, -1], cell=after.cell[:, -1])
        outs.append(np.asarray(out[0]))
    return np.concatenate(outs), cache


def over_text(head: Golden, tokens: int) -> np.ndarray:
    positions = jnp.arange(tokens, dtype=jnp.int32)[None]
    segments = jnp.zeros_like(positions)
    return np.asarray(text(head.params, head.model, *inputs(head, tokens), segments, positions))[0]


def over_left_cache(head: Golden, tokens: int) -> np.ndarray:
    return over_cache(head, tokens)[0]


# --- goldens of the released code -----------------------------------------------------------------

ROW_SUMS = {
    "first, one layer": (
        dict(weights="first"),
        (3.58299, 4.21474, 4.52803, 3.7712, 4.36297, 4.03151),
    ),
    "first, two layers": (
        dict(weights="first", n_layers=2),
        (-13.53177, -13.90666, -13.81228, -13.57618, -14.07755, -13.47576),
    ),
    "second, k=1": (
        dict(weights="second", k=1),
        (0.171656, 0.166014, 0.159355, 0.213353, 0.140500, 0.185640),
    ),
    "second, k=2": (
        dict(weights="second", k=2),
        (0.211531, 0.166014, 0.150398, 0.213353, 0.137499, 0.185640),
    ),
    "second, k=3": (
        dict(weights="second", k=3),
        (0.219490, 0.172206, 0.159355, 0.222159, 0.137499, 0.185640),
    ),
    "second, sequence": (
        dict(weights="second", mode=SEQUENCE),
        (0.273218, 0.106700, 0.104013, 0.095559, 0.105620, 0.096702),
    ),
}


@pytest.mark.parametrize("run", [over_left_cache, over_text])
@pytest.mark.parametrize("case", ROW_SUMS)
def test_outputs_are_the_released_ones(case, run):
    how, sums = ROW_SUMS[case]
    np.testing.assert_allclose(run(golden(**how), 6).sum(-1), sums, atol=CLOSE)


def test_every_number_of_one_row_is_the_released_one():
    head = golden()
    block = relaxed_block(0, 6, 2)
    cache = empty_cache(head.model.config.decoder, 1, SLOTS, jnp.float32)
    out, _, mixed, _ = draft(head.params, head.model, cache, *inputs(head, 6), block)
    lstm = (0.20549, 0.00016, -0.07544, -0.05328, 0.13959, 0.0872, -0.02477, -0.12696)
    last = (-1.1356, 5.69419, -3.74364, -1.78416, 5.87546, -3.47474, -2.96151, 5.56151)
    np.testing.assert_allclose(mixed[0, 5], lstm, atol=2e-5)
    np.testing.assert_allclose(out[0, 5], last, atol=CLOSE)


LEFT = (0.211531, 0.166014, 0.150398, 0.213353, 0.137499, 0.185640, 0.224208)
RIGHT = (0.171656, 0.172206, 0.159355, 0.226636, 0.140500, 0.180999, 0.224208)


@pytest.mark.parametrize(
    ("cuts", "align", "sums"), [((), "left", LEFT), ((4,), "left", LEFT), ((), "right", RIGHT)]
)
def test_a_call_over_a_cache_gives_the_released_rows(cuts, align, sums):
    outs, _ = over_cache(golden("second"), 7, cuts=cuts, align=align)
    np.testing.assert_allclose(outs.sum(-1), sums, atol=2e-6)


def head_logits(out: np.ndarray) -> np.ndarray:
    return out @ golden_target_head().T


def best(logits: np.ndarray) -> list[list[int]]:
    return np.argsort(-logits, axis=-1)[..., :4].tolist()


def test_the_first_pass_and_a_pass_over_a_tree_propose_the_released_tokens():
    """The tree of two paths of two tokens, each a block that sees the text and itself."""
    head = golden()
    prime, cache = over_cache(head, 6)
    logits = head_logits(prime[-2:])
    assert best(logits) == [[8, 5, 11, 2], [8, 5, 11, 2]]
    np.testing.assert_allclose(logits.max(-1), (2.6945, 2.6073), atol=CLOSE)
    block = Block(
        prefix=jnp.asarray([6], jnp.int32),
        visible=jnp.asarray(np.kron(np.eye(2), np.ones((2, 2))), bool)[None],
        positions=jnp.asarray([[6, 7, 6, 7]], jnp.int32),
    )
    embeddings = head.embedding[jnp.asarray([8, 8, 5, 8])][None]
    features = jnp.asarray(np.concatenate([prime[-2:]] * 2))[None]
    out, *_ = draft(head.params, head.model, cache, embeddings, features, block)
    logits = head_logits(np.asarray(out[0]))
    assert best(logits) == [[5, 8, 2, 31], [5, 8, 2, 31], [31, 2, 28, 5], [8, 11, 5, 14]]
    np.testing.assert_allclose(logits.max(-1), (1.3074, 1.6811, 1.7238, 2.4305), atol=CLOSE)


def test_an_odd_prompt_left_aligned_proposes_the_released_tokens():
    logits = head_logits(over_left_cache(golden(), 5)[-2:])
    assert best(logits) == [[8, 11, 5, 14], [8, 5, 11, 2]]
    top = -np.sort(-logits, axis=-1)[:, :3]
    released = [[2.4257, 2.4229, 2.3157], [2.4915, 2.4412, 2.4261]]
    np.testing.assert_allclose(top, released, atol=CLOSE)


# --- what follows from the form -------------------------------------------------------------------


def test_the_first_layer_alone_has_no_input_norm():
    first, second = golden(n_layers=2).params["layers"]
    assert "attention_norm" not in first and "attention_norm" in second


def mixed_of(head: Golden, embeddings, features) -> np.ndarray:
    return np.asarray(mix(head.params, head.model, embeddings, features)[0])


def test_the_pointwise_lstm_knows_one_row_at_a_time_and_is_bounded():
    head = golden()
    embeddings, features = inputs(head, 6)
    mixed = mixed_of(head, embeddings, features)
    turn = np.asarray([3, 0, 5, 1, 4, 2])
    turned = mixed_of(head, embeddings[:, turn], features[:, turn])
    np.testing.assert_array_equal(turned, mixed[:, turn])
    assert np.abs(mixed_of(head, 1e3 * embeddings, 1e3 * features)).max() < np.tanh(1)


def same_cache(one: KVCache, other: KVCache, slots: slice) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a[:, :, slots], b[:, :, slots], atol=1e-6) for a, b in pairs)


def test_what_one_pointwise_layer_caches_depends_on_its_own_row_alone():
    head, causal = golden(), golden(k=1)
    _, cache = over_cache(head, 7)
    for other in (
        over_cache(causal, 7)[1],
        over_cache(head, 7, align="right")[1],
        over_cache(head, 7, cuts=(4,))[1],
    ):
        assert same_cache(cache, other, slice(None))
    _, shorter = over_cache(head, 4)
    assert same_cache(cache, shorter, slice(0, 4)) and not same_cache(cache, shorter, slice(4, 7))


def test_a_sequence_lstm_goes_on_from_its_memory():
    head = golden("second", mode=SEQUENCE)
    whole, _ = over_cache(head, 7)
    parts, _ = over_cache(head, 7, cuts=(4,))
    np.testing.assert_allclose(parts, whole, atol=CLOSE)
    assert not np.allclose(whole, over_left_cache(golden("second"), 7))


@pytest.mark.parametrize(
    ("how", "remat"),
    [
        (dict(k=2, n_layers=2), True),
        (dict(k=2), False),
        (dict(k=3), False),
        (dict(mode=SEQUENCE), False),
    ],
)
def test_packed_texts_equal_each_text_alone(how, remat):
    """The first text ends within a block; the padding is a text of its own."""
    head = golden(**how)
    lengths, total = (7, 4), 13
    parts = [inputs(head, length) for length in (*lengths, total - sum(lengths))]
    embeddings, features = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    segments, positions = np.full((1, total), -1, np.int32), np.zeros((1, total), np.int32)
    segments[0, :11] = np.repeat([0, 1], lengths)
    positions[0, :11] = np.concatenate([np.arange(length) for length in lengths])
    packed = text(
        head.params,
        head.model,
        embeddings,
        features,
        jnp.asarray(segments),
        jnp.asarray(positions),
        remat=remat,
    )
    alone = np.concatenate([over_left_cache(head, length) for length in lengths])
    np.testing.assert_allclose(packed[0, :11], alone, atol=CLOSE)


@pytest.mark.parametrize("mode", LstmMode)
def test_bfloat16_stays_bfloat16_and_near(mode):
    head = golden("second", mode=mode)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (head.params, inputs(head, 6)))
    params, (embeddings, features) = narrow
    cache = empty_cache(head.model.config.decoder, 1, SLOTS, jnp.bfloat16)
    memory = no_memory(head.model, 1, jnp.bfloat16)
    block = relaxed_block(0, 6, 2)
    out, cache, _, _ = draft(params, head.model, cache, embeddings, features, block, memory)
    assert out.dtype == jnp.bfloat16 and cache.keys[0].dtype == jnp.bfloat16
    wide = over_left_cache(head, 6)
    np.testing.assert_allclose(
        out[0].astype(np.float32), wide, atol=tolerance(jnp.bfloat16).logits / 5
    )
    assert np.abs(wide).max() > 0.1


def test_a_config_is_refused_without_tokens_in_a_pass():
    decoder = DecoderConfig(
        vocab_size=V,
        width=D,
        mlp_width=F,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        head_dim=4,
        max_positions=64,
    )
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        SarConfig(decoder, block_size=0)
