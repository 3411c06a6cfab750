"""What a diffusion model predicts, by definition; and how little a kept prefix may change."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify import reference
from jspec.checkpoints.diffusion import load_diffusion
from jspec.checkpoints.hf_config import read_hf_config
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix, predict, start_prefix
from jspec.models.diffusion import (
    DiffusionConfig,
    DiffusionModel,
    Slots,
    read_window,
    scratch,
)
from jspec.models.model import build, random_params
from jspec.state import Context, Sampling
from jspec.testing.compile_options import usual_form
from jspec.testing.models import tiny_config, tiny_target
from tests.support.compiled import makers
from tests.support.diffusion import (
    CONFIGS,
    MASK,
    in_llama_names,
    slot_logprobs,
    tensors_of,
    write_tiny,
)
from tests.support.tolerances import tolerance

ATOL = tolerance("float32").logits
CAPACITY = 48

run_slots = jax.jit(slot_logprobs, static_argnames=("model", "slots"))
run_predict = jax.jit(predict, static_argnames=("model", "prefix", "slots", "refinement"))


def log_softmax(logits):
    """In NumPy, over the last axis."""
    top = logits - logits.max(axis=-1, keepdims=True)
    return top - np.log(np.sum(np.exp(top), axis=-1, keepdims=True))


def texts(lengths, capacity=CAPACITY, vocab=60, seed=3):
    """Random texts, with rubbish after their ends."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (len(lengths), capacity))
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)


def tiny_diffusion(*, is_shifted=True, scale=0.35, seed=0, **changes):
    model = build(tiny_config(is_causal=False, **changes))
    config = DiffusionConfig(mask_id=60, is_shifted=is_shifted, n_ids=60)
    params = random_params(model, key=jax.random.key(seed), scale=scale)
    return DiffusionModel(model=model, config=config), params


def context_of(tokens, length, is_active=None) -> Context:
    zeros = jnp.zeros_like(length)
    flat = zeros.astype(jnp.float32)
    counts = zeros.astype(jnp.uint32)
    return Context(
        tokens=tokens,
        length=length,
        is_active=jnp.ones(length.shape, bool) if is_active is None else jnp.asarray(is_active),
        sampling=Sampling(
            temperature=flat,
            top_k=zeros,
            top_p=flat + 1,
            min_p=flat,
            seed=counts,
            sample=counts,
            stop_ids=zeros[:, None] - 1,
            max_length=zeros + CAPACITY,
        ),
    )


# --- one pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "n_extra"), [("dream", 0), ("dream", 1), ("llada", 0)])
def test_slots_are_those_of_the_definition_in_float64(kind, n_extra, tmp_path):
    target = tiny_target(vocab_size=128)
    model, params = load_diffusion(write_tiny(tmp_path, kind), target=target, forbidden=(11,))
    slots = Slots(n_masks=4, has_extra=bool(n_extra))
    tokens, length = texts([9, 4, 1], 12, 128)
    got = run_slots(params, model, tokens, length, slots)
    assert got.shape == (3, 4 + n_extra, 128) and got.dtype == jnp.float32
    config = read_hf_config(CONFIGS[kind])
    weights = in_llama_names(tensors_of(CONFIGS[kind]))
    weights = {name: x.astype(np.float64) for name, x in weights.items()}
    for row, n in enumerate(length):
        text = [*tokens[row, :n].tolist(), *[MASK] * 4]
        logits = reference.logits_of(config, weights, text)
        first = int(n) - 1 if kind == "dream" else int(n)
        wanted = logits[first : first + slots.count]
        wanted[:, [11, MASK]] = -np.inf
        np.testing.assert_allclose(got[row], log_softmax(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_shifted", [True, False])
def test_a_planted_copy_tells_the_shift(is_shifted):
    """Rows predict their own token: slot i is that of the row before where the model is shifted."""
    model, params = tiny_diffusion(is_shifted=is_shifted, width=64)
    layers = [
        layer
        | {
            "attention": layer["attention"] | {"o": 0 * layer["attention"]["o"]},
            "mlp": layer["mlp"] | {"down": 0 * layer["mlp"]["down"]},
        }
        for layer in params["layers"]
    ]
    params = params | {"layers": tuple(layers), "head_weight": params["embedding"].T}
    tokens, length = texts([7, 3])
    block = jnp.asarray([[4, 8, 15, 16], [23, 42, 1, 2]], jnp.int32)
    count = 4 + is_shifted
    run = jax.jit(
        functools.partial(read_window, width=8, n_slots=count),
        static_argnames="model",
    )
    cache = scratch(params, model, 2, 16)
    logits, _ = run(params, model, cache, tokens, length, length - 2, block)
    last = tokens[jnp.arange(2), length - 1][:, None]
    wanted = jnp.concatenate([last, block], axis=1) if is_shifted else block
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), wanted)


def test_masks_and_forbidden_ids_are_never_predicted():
    model, params = tiny_diffusion()
    config = dataclasses.replace(model.config, n_ids=50, forbidden=(7, 9))
    model = dataclasses.replace(model, config=config)
    tokens, length = texts([5, 20])
    logprobs = np.asarray(run_slots(params, model, tokens, length, Slots(n_masks=5)))
    never = [7, 9, *range(50, 61)]
    assert np.all(logprobs[..., never] == -np.inf)
    others = np.delete(logprobs, never, axis=-1)
    assert np.all(np.isfinite(others))
    np.testing.assert_allclose(np.exp(others).sum(-1), 1, atol=1e-5)


def test_what_stands_after_a_text_is_not_read_and_rows_are_alone():
    model, params = tiny_diffusion()
    tokens, length = texts([5, 20, 33])
    slots = Slots(n_masks=5)
    got = run_slots(params, model, tokens, length, slots)
    places = jnp.arange(CAPACITY)[None]
    cut = jnp.where(places < length[:, None], tokens, 0)
    np.testing.assert_array_equal(run_slots(params, model, cut, length, slots), got)
    alone = run_slots(params, model, tokens[:1, :8], length[:1], slots)
    np.testing.assert_allclose(alone[0], got[0], rtol=0, atol=ATOL)


def test_a_pass_needs_a_mask_and_a_model_that_reads_both_ways():
    model, _ = tiny_diffusion(is_shifted=False)
    with pytest.raises(ValueError, match="at least 1 mask"):
        Slots(n_masks=0)
    with pytest.raises(ValueError, match="this one is causal"):
        DiffusionModel(model=build(tiny_config()), config=model.config)


# --- the prefix ----------------------------------------------------------------------------------

SLOTS = Slots(n_masks=3, has_extra=True)
WINDOWED = Prefix(windows=(2, 5), refresh_every=3, n_widths=2)
PROMPTS = [6, 15, 2]
COMMITS = [[1, 1, 1], [2, 1, 2], [4, 3, 1], [1, 5, 3], [7, 1, 1], [2, 2, 2]]
"""Tokens that each row commits before each round; 7 is more than a window holds."""


@functools.cache
def rounds(prefix, *, n_layers=2, is_shifted=True, row=None):
    """Log-probabilities of every round, those of one pass over everything, and ages."""
    model, params = tiny_diffusion(n_layers=n_layers, is_shifted=is_shifted)
    slots = SLOTS if is_shifted else Slots(n_masks=3)
    chosen = slice(None) if row is None else slice(row, row + 1)
    tokens, length = (x[chosen] for x in texts(PROMPTS))
    state = start_prefix(
        params, model, prefix, tokens[:, :16], length, capacity=CAPACITY, n_masks=3
    )
    found, wanted, ages = [], [], []
    for commits in COMMITS:
        length = length + jnp.asarray(commits, jnp.int32)[chosen]
        context = context_of(tokens, length)
        prediction, state = run_predict(params, model, prefix, state, context, slots)
        found.append(np.asarray(prediction.logprobs))
        ages.append(int(state.age[0]))
        if row is None:
            wanted.append(np.asarray(run_slots(params, model, tokens, length, slots)))
    return found, wanted, ages


def farthest(one, other) -> list[float]:
    """Of the ids that may be predicted, round by round."""
    return [float(np.abs(a[..., :60] - b[..., :60]).max()) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize(
    "prefix", [RECOMPUTE, Prefix(windows=(2,), refresh_every=1, n_widths=1)], ids=["none", "always"]
)
def test_recomputing_and_a_refresh_every_round_are_one_pass_over_everything(prefix):
    found, wanted, ages = rounds(prefix)
    assert max(farthest(found, wanted)) < ATOL
    assert not any(ages)


@pytest.mark.parametrize("is_shifted", [True, False])
def test_one_layer_through_windows_equals_recomputing(is_shifted):
    """Keys and values of a first layer depend on their token alone: every row must be right."""
    never = dataclasses.replace(WINDOWED, refresh_every=None)
    found, wanted, ages = rounds(never, n_layers=1, is_shifted=is_shifted)
    assert max(farthest(found, wanted)) < ATOL
    assert ages == [1, 2, 3, 4, 0, 1]


def test_windows_that_are_enough_predict_the_same_without_passes_over_everything():
    either = Prefix(windows=(2, 8), n_widths=2)
    enough = dataclasses.replace(either, is_enough=True)
    assert farthest(rounds(either)[0], rounds(enough)[0]) == [0.0] * len(COMMITS)
    assert "cond[" in program_of(either) and "cond[" not in program_of(enough)
    assert "cond[" in program_of(dataclasses.replace(enough, refresh_every=2))


def program_of(prefix) -> str:
    """The round as it is traced; passes over everything are the branches of a conditional."""
    model, params = tiny_diffusion()
    tokens, length = texts(PROMPTS)

    def once(tokens, length):
        state = start_prefix(
            params, model, prefix, tokens[:, :16], length, capacity=CAPACITY, n_masks=3
        )
        return predict(params, model, prefix, state, context_of(tokens, length), SLOTS)

    return str(jax.make_jaxpr(once)(tokens, length))


def test_frozen_keys_differ_until_they_are_renewed():
    found, wanted, ages = rounds(WINDOWED)
    assert ages == [1, 2, 0, 1, 0, 1]
    for difference, age in zip(farthest(found, wanted), ages, strict=True):
        assert difference > 1e-2 if age else difference < ATOL


def test_rows_do_not_depend_on_their_neighbours():
    together, alone = rounds(WINDOWED)[0], rounds(WINDOWED, row=1)[0]
    # In the fifth round a neighbour needs a pass over everything.
    assert max(farthest([got[1:2] for got in together[:4]], alone[:4])) < ATOL


def test_idle_rows_ask_for_nothing_and_keep_their_state():
    model, params = tiny_diffusion()
    tokens, length = texts(PROMPTS)
    state = start_prefix(
        params, model, WINDOWED, tokens[:, :16], length, capacity=CAPACITY, n_masks=3
    )
    later = context_of(tokens, jnp.asarray([7, 45, 3], jnp.int32), [True, False, True])
    prediction, after = run_predict(params, model, WINDOWED, state, later, SLOTS)
    assert after.n_read.tolist() == [7, 15, 3] and after.age.tolist() == [1, 0, 1]
    assert not np.isnan(prediction.logprobs).any()


def test_no_round_traces_anew_and_no_cache_is_copied():
    model, params = tiny_diffusion()
    tokens, length = texts(PROMPTS)
    prefix = Prefix(windows=(2, 20), refresh_every=4, n_widths=1)
    state = start_prefix(
        params, model, prefix, tokens[:, :16], length, capacity=CAPACITY, n_masks=3
    )
    n_traces = 0

    def counted(state, context):
        nonlocal n_traces
        n_traces += 1
        return predict(params, model, prefix, state, context, SLOTS)

    step = jax.jit(counted, donate_argnums=0)
    compiled = step.lower(state, context_of(tokens, length)).compile(usual_form())
    assert state.cache is not None
    leaf = state.cache.keys[0]
    assert leaf.shape[2] > prefix.widths(CAPACITY, 3)[-1]
    assert not makers(compiled, leaf.size)["copy"]
    for commits in COMMITS:
        length = length + jnp.asarray(commits, jnp.int32)
        _, state = step(state, context_of(tokens, length))
    assert n_traces == 1


def test_widths_and_slots_hold_the_longest_text():
    prefix = Prefix(windows=(4, 9), n_widths=4)
    assert prefix.widths(512, 8) == (160, 288, 416, 544)
    assert prefix.widths(20, 4) == (32,)
    assert prefix.slots(512, 8) == 544 and prefix.slots(520, 8) == 544
    assert not RECOMPUTE.is_frozen and prefix.is_frozen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windows": (2,), "refresh_every": 0}, "at least 1 round"),
    ],
)
def test_a_prefix_checks_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        Prefix(**fields)
