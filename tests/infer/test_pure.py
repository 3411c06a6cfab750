"""The functions for Python refuse what they cannot do, in one line, before anything is traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jspec
from jspec.drafters import LoadedDrafter
from jspec.drafters.prompt_lookup import PromptLookup
from jspec.errors import UserError
from jspec.infer.pure import check_loop, check_prefill, end_unserved
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode
from jspec.models.model import build
from jspec.state import StopReason
from jspec.testing.models import tiny_target

TARGET = tiny_target(n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=31)
LOADED = LoadedDrafter(name="prompt-lookup", drafter=PromptLookup(depth=2), params=())
DEEPER = build(dataclasses.replace(TARGET.model.config, n_layers=2, windows=()))
PROGRAM = Program(target=TARGET.model, drafter=LOADED.drafter)
PARAMS = (TARGET.params, LOADED.params)
TOKENS, LENGTH = np.ones((2, 5), np.int32), np.array([5, 3], np.int32)


def settings(rows: int = 2, max_length: int = 20, **more) -> jspec.Sampling:
    request = jspec.Request(tokens=(1,), max_new_tokens=max_length, **more)
    return jspec.sampling_of([request] * rows, max_length=max_length, max_stop_ids=1)


def with_field(name: str, value) -> jspec.Sampling:
    return dataclasses.replace(settings(), **{name: value})


API: Any = jspec
"""Without types, so that type checkers let the mistakes through."""

GOOD: dict[str, Any] = dict(
    params=PARAMS, program=PROGRAM, tokens=TOKENS, length=LENGTH, sampling=settings(), capacity=20
)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"capacity": 4}, "capacity 4 is less than the 5 tokens of the prompts"),
        ({"capacity": 5, "sampling": settings(max_length=5)}, "expected 1 to 4 .* 5 in row 0"),
        ({"capacity": 20.0}, "capacity: expected a static int, given 20.0"),
        ({"capacity": True}, "capacity: expected a static int, given true"),
        ({"length": np.array([5, 6], np.int32)}, "expected 1 to 5 tokens .* given 6 in row 1"),
        ({"length": np.array([0, 3], np.int32)}, "given 0 in row 0"),
        ({"length": np.array([5], np.int32)}, r"length: expected 2 rows, .* given int32 \[1\]"),
        ({"length": 5}, r"length: expected an array int32 \[B\], given 5"),
        ({"tokens": TOKENS[0]}, r"tokens: expected int32 \[B, T\], given int32 \[5\];.*\[None\]"),
        ({"tokens": TOKENS.astype(float)}, "tokens: expected int32 .*, given float64"),
        ({"tokens": [[1, 2]]}, r"tokens: expected an array .*, given \[\[1, 2\]\]"),
        ({"sampling": settings(3)}, r"sampling.temperature: expected 2 rows, as tokens have"),
        ({"sampling": {}}, "sampling: expected what jspec.sampling_of returns"),
        ({"sampling": with_field("seed", np.zeros(2, np.float32))}, "sampling.seed: .* float32"),
        ({"sampling": with_field("top_k", np.zeros(2, np.float32))}, "sampling.top_k: expected"),
        ({"sampling": with_field("temperature", np.zeros(2, np.int32))}, "sampling.temperature"),
        ({"sampling": with_field("stop_ids", np.zeros(2, np.int32))}, r"int32 \[B, E\]"),
        ({"sampling": settings(max_length=21)}, "max_length 21 is more than the capacity 20"),
        ({"sampling": settings(temperature=1.0)}, "mode greedy serves temperature 0 only.*PLAIN"),
        ({"sampling": settings(temperature=1.0, top_k=2)}, "need full; .* mode=jspec.law.Mode.FUL"),
        ({"program": TARGET.model}, "program: expected a jspec.Program, given Model"),
        ({"params": TARGET.params}, "params: expected the pair"),
        ({"params": (TARGET, LOADED)}, "params: expected the pair"),
    ],
)
def test_prefill_refuses(changes, told):
    with pytest.raises(UserError, match=told) as error:
        jspec.prefill(**(GOOD | changes))
    assert "\n" not in str(error.value)


def test_what_fits_passes_the_checks_also_where_only_shapes_are_known():
    check_prefill(**GOOD)
    check_prefill(**GOOD | {"sampling": settings(temperature=1.0), "program": mode(Mode.PLAIN)})

    def somebodys(tokens, length, sampling):
        check_prefill(PARAMS, PROGRAM, tokens, length, sampling, 20)
        return tokens

    jax.eval_shape(somebodys, TOKENS, LENGTH, settings(temperature=1.0))
    with pytest.raises(UserError, match="expected 2 rows"):
        jax.eval_shape(somebodys, TOKENS, LENGTH, settings(3))


def mode(of: Mode) -> Program:
    return dataclasses.replace(PROGRAM, mode=of)


FILTERS: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}]
MIXED = [{}, *FILTERS, {"temperature": 1.0}, *({"temperature": 1.0} | one for one in FILTERS)]
"""Four rows that greedy serves, one that needs plain, three that need full."""
ROWS = len(MIXED)


def mixed() -> jspec.Sampling:
    requests = [jspec.Request(tokens=(1, 2, 1), max_new_tokens=4, **row) for row in MIXED]
    return jspec.sampling_of(requests, max_length=20, max_stop_ids=1)


@pytest.fixture(scope="module")
def generation() -> DecodeState:
    """Of rows that were prefilled with the mode that serves all of them."""
    tokens, length = np.array([[1, 2, 1]] * ROWS, np.int32), np.full(ROWS, 3, np.int32)
    return API.prefill(PARAMS, mode(Mode.FULL), tokens, length, mixed(), capacity=20)


@pytest.mark.parametrize("of, n_served", [(Mode.GREEDY, 4), (Mode.PLAIN, 5)])
def test_rows_of_another_mode_end_at_once_where_settings_are_traced(of, n_served, generation):
    """A temperature of 1 is not decoded greedily inside somebody's `jit`."""
    ended = end_unserved(generation, jnp.full(ROWS, 3, jnp.int32), mode(of))
    served = np.arange(ROWS) < n_served
    np.testing.assert_array_equal(ended.context.is_active, served)
    np.testing.assert_array_equal(ended.context.length, np.where(served, 4, 3))
    reasons = np.where(served, StopReason.NONE, StopReason.WRONG_MODE)
    np.testing.assert_array_equal(ended.stop_reason, reasons)


def test_prefill_in_a_jit_ends_the_rows_that_its_mode_does_not_serve():
    tokens, length = np.array([[1, 2, 1]] * ROWS, np.int32), np.full(ROWS, 3, np.int32)
    somebodys = jax.jit(lambda s: API.prefill(PARAMS, PROGRAM, tokens, length, s, capacity=20))
    reasons = somebodys(mixed()).stop_reason.tolist()
    assert reasons == [StopReason.NONE] * 4 + [StopReason.WRONG_MODE] * 4


@pytest.mark.parametrize(
    "program, rounds, told",
    [
        (mode(Mode.PLAIN), None, "mode plain serves temperatures without filters.*need full"),
        (dataclasses.replace(mode(Mode.FULL), trace=True), None, "another trace"),
        (dataclasses.replace(mode(Mode.FULL), drafter=PromptLookup(depth=3)), 1, "2 deep.*3 deep"),
        (dataclasses.replace(mode(Mode.FULL), target=DEEPER), 1, "of another target or drafter"),
        (TARGET.model, 1, "program: expected a jspec.Program, given Model"),
        (mode(Mode.FULL), -1, "rounds: expected a number of at least 0, given -1"),
        (mode(Mode.FULL), 1.5, "rounds: expected"),
        (mode(Mode.FULL), np.array([1, 2]), "rounds: expected"),
    ],
)
def test_the_loop_refuses_what_another_program_made(program, rounds, told, generation):
    check_loop(PARAMS, mode(Mode.FULL), generation, 2)
    with pytest.raises(UserError, match=told):
        jspec.decode_loop(PARAMS, program, generation, rounds=rounds)


def test_the_loop_wants_a_generation():
    with pytest.raises(UserError, match="decoding: expected what prefill returns"):
        API.decode_loop(PARAMS, PROGRAM, TOKENS)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"drafter": LOADED}, "drafter must be the .drafter of what jspec.load_drafter returns"),
        ({"drafter": "prompt-lookup"}, "drafter must be"),
        ({"target": TARGET}, r"target must be target.model, given Target\("),
        ({"mode": "full"}, "mode must be one of jspec.law.Mode, given 'full'"),
        ({"rule": "walk"}, "rule must be one of jspec.law.Rule"),
    ],
)
def test_a_program_refuses_what_is_loaded(changes, told):
    with pytest.raises(UserError, match=told) as error:
        Program(**({"target": TARGET.model, "drafter": LOADED.drafter} | changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda: API.generate("path", ["a"], max_new_tokens=1), "jspec.load_target returns.*'pa"),
        (lambda: API.generate(TARGET, "a", max_new_tokens=1), r"a list of prompts.*wrap it: \[x"),
        (lambda: API.generate(TARGET, [1, 2], max_new_tokens=1), r"prompts\[0\].*is \[ids\]"),
        (
            lambda: API.generate(TARGET, [[1]], drafter=LOADED.drafter, max_new_tokens=1),
            r"jspec.load_drafter returns, given PromptLookup\(",
        ),
        (lambda: API.generate(TARGET, [[1]], drafter="x", max_new_tokens=1), "load it first"),
        (lambda: next(API.stream("path", ["a"], max_new_tokens=1)), "jspec.load_target returns"),
        (lambda: API.Engine("path"), "jspec.load_target returns"),
        (lambda: API.Engine(TARGET, "falcon"), "jspec.load_drafter returns"),
        (lambda: API.load_drafter("none", target="path"), "target must be what jspec.load_targ"),
        (lambda: API.load_drafter(TARGET, target=TARGET), "name must be a drafter's name"),
        (lambda: API.sampling_of(REQUEST, max_length=9, max_stop_ids=1), r"wrap it: \[request\]"),
        (lambda: API.sampling_of([REQUEST], max_length=9, max_stop_ids=1), "has 2 stop ids"),
    ],
)
def test_calls_from_python_are_refused_in_pythons_words(call: Any, told):
    with pytest.raises(UserError, match=told) as error:
        call()
    assert "\n" not in str(error.value) and "--" not in str(error.value)


REQUEST = jspec.Request(tokens=(1,), max_new_tokens=1, stop_ids=(1, 2))


@pytest.mark.parametrize("name", ["falcon", "easyspec", "diffuspec", "draft-model"])
def test_a_drafter_without_its_path_speaks_python(name):
    with pytest.raises(UserError, match="path") as error:
        API.load_drafter(name, target=TARGET)
    assert "--" not in str(error.value)


def test_every_value_that_users_hold_is_one_short_line():
    engine = API.Engine(TARGET, LOADED)
    for value in (TARGET, TARGET.model, LOADED, PROGRAM, engine):
        assert "\n" not in repr(value) and len(repr(value)) < 300
        assert repr(value).startswith(f"{type(value).__name__}(")
    assert "vocabulary 31" in repr(TARGET) and "'prompt-lookup'" in repr(LOADED)
    assert "mode=greedy" in repr(PROGRAM) and "batch_size=1" in repr(engine)
