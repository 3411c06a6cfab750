"""The compiled decoding loop updates its state in place and copies no weight.

Slots are many here, so that one copy of a layer's keys outweighs everything else a round needs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jspec.drafters.none import NoDrafter
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode
from jspec.models.model import abstract_params, build
from jspec.ops import cache as cache_ops
from jspec.state import Sampling
from jspec.testing.compile_options import usual_form
from jspec.testing.drafters import Oracle, RandomTrees
from jspec.testing.models import tiny_config
from tests.support.compiled import makers, n_bytes

SLOTS = 4096

CONFIG = tiny_config(
    vocab_size=419, width=88, mlp_width=152, head_dim=64, n_kv_heads=4, max_positions=SLOTS
)
"""No two weights have the size of an activation, nor of one another's transpose by chance."""

DRAFTERS = {
    1: NoDrafter(),
    5: Oracle(vocab_size=CONFIG.vocab_size, depth=4),
    13: Oracle(vocab_size=CONFIG.vocab_size, depth=4, width=3),
    12: RandomTrees(vocab_size=CONFIG.vocab_size, shapes=((12, 4), (3, 2))),
}
"""By nodes a draft: plain decoding, a chain, a tree, drafts of two sizes."""


def abstract(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def greedy(rows: int) -> Sampling:
    floats, ints = jnp.zeros((rows,), jnp.float32), jnp.zeros((rows,), jnp.int32)
    words = jnp.zeros((rows,), jnp.uint32)
    return Sampling(
        temperature=floats,
        top_k=ints,
        top_p=floats + 1,
        min_p=floats,
        seed=words,
        sample=words,
        stop_ids=jnp.zeros((rows, 2), jnp.int32),
        max_length=ints,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A program with abstract arguments; nothing is allocated."""

    program: Program
    params: tuple
    generation: DecodeState

    def compile(self, *, rounds=4, donates=True):
        def entry(params, generation):
            return decode_loop(params, self.program, generation, rounds=rounds)

        jitted = jax.jit(entry, donate_argnums=(1,) if donates else ())
        return jitted.lower(self.params, self.generation).compile(usual_form())

    @property
    def layer_keys(self):
        return self.generation.cache.keys[0]


def make_case(rows: int, nodes: int, mode: Mode = Mode.GREEDY, **options) -> Case:
    model, drafter = build(CONFIG), DRAFTERS[nodes]
    program = Program(target=model, drafter=drafter, mode=mode, **options)
    params = abstract_params(model, jnp.float32), abstract((1, 64))
    generation = jax.eval_shape(
        lambda params, tokens, length: prefill(
            params, program, tokens, length, greedy(rows), capacity=SLOTS - 32
        ),
        params,
        abstract((rows, 32)),
        abstract((rows,)),
    )
    return Case(program, params, generation)


def assert_in_place(case: Case) -> None:
    compiled = case.compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == n_bytes(case.generation)
    assert memory.temp_size_in_bytes < n_bytes(case.layer_keys) / 2
    assert not makers(compiled, case.layer_keys.size)
    for weight in {leaf.size for leaf in jax.tree.leaves(case.params[0]) if leaf.ndim > 1}:
        assert not makers(compiled, weight)


@pytest.mark.parametrize(
    "rows, nodes",
    [(1, 1), (8, 12), *(pytest.param(*case, marks=pytest.mark.grid) for case in ((8, 5), (1, 13)))],
)
def test_loop_copies_neither_cache_nor_weights(rows, nodes):
    assert_in_place(make_case(rows, nodes))


def test_loop_of_static_trip_count_copies_nothing_either():
    assert_in_place(make_case(1, 5, exits_early=False))


def test_sampling_with_filters_and_trace_copies_nothing_either():
    assert_in_place(make_case(1, 5, Mode.FULL, trace=True))


def test_a_generation_that_is_not_donated_is_noticed():
    case = make_case(1, 1)
    compiled = case.compile(donates=False)
    memory = compiled.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes == 0
    assert makers(compiled, case.layer_keys.size)


def test_a_compaction_that_goes_over_all_slots_is_noticed(monkeypatch):
    def careless(array, start, path, window):
        slots = jnp.arange(array.shape[2])[None, :]
        step = jnp.clip(slots - start[:, None], 0, path.shape[1] - 1)
        moved = start[:, None] + jnp.take_along_axis(path, step, axis=1)
        source = jnp.where(slots < start[:, None], slots, moved)
        return jnp.take_along_axis(array, source[:, None, :, None], axis=2)

    monkeypatch.setattr(cache_ops, "compact", careless)
    case = make_case(1, 13)
    assert makers(case.compile(), case.layer_keys.size)
