"""The compiled round: nothing cache- or weight-sized is copied, and collectives are as predicted.

Slots are many here, so that one copy of a layer's keys outweighs everything else a round needs.
"""

from __future__ import annotations

import math
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jspec.aot.hlo import read
from jspec.checkpoints.target import abstract_target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import contiguous
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.drafters.growth import Grower
from jspec.infer.executables import Executables
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Rule
from jspec.models.model import abstract_params, build
from jspec.models.weights import sharded_shapes
from jspec.sharding import make_mesh
from jspec.testing.compile_options import usual_form
from jspec.testing.models import tiny_config
from tests.support.compiled import makers

SLOTS, DEPTH, WIDTH, LAYERS = 4096, 3, 2, 6
TARGET_LAYERS = 2
CONFIG = tiny_config(
    vocab_size=416, width=88, mlp_width=152, head_dim=64, n_kv_heads=4, max_positions=SLOTS
)
SMALL = tiny_config(
    n_layers=LAYERS,
    vocab_size=416,
    width=72,
    mlp_width=136,
    head_dim=64,
    n_kv_heads=4,
    max_positions=SLOTS,
)


def compiled_chunk(plan: Parallelism, calibration: Calibration, sizes: dict[str, int]):
    """One round, compiled as users have it; and what is in a device's memory."""
    mesh = make_mesh(devices=None, **sizes)
    target = abstract_target(CONFIG, dtype="float32", mesh=mesh)
    model = build(SMALL)
    decoder = LayerParallelDecoder(model, contiguous(LAYERS, 4), plan, mesh)
    shapes = sharded_shapes(abstract_params(model, jnp.float32), mesh, plan.table)
    drafter = EasySpec(
        decoder=decoder,
        grower=Grower(vocab_size=CONFIG.vocab_size, depth=DEPTH, width=WIDTH),
        calibration=calibration,
    )
    params = decoder.place(shapes)
    programs = Executables(
        target=target,
        drafter=LoadedDrafter(name="easyspec", drafter=drafter, params=params),
        rule=Rule.WALK,
        trace=False,
        loop=None,
        batch_size=1,
        capacity=SLOTS - 32,
        rounds=4,
    )
    rows = jax.ShapeDtypeStruct((1, 32), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    sampling = sampling_of(
        [Request(tokens=(0,), max_new_tokens=1)], max_length=SLOTS - 32, max_stop_ids=2
    )
    generation = programs.state_shapes(*rows, sampling)
    return programs.lower_chunk(generation, Mode.GREEDY).compile(usual_form()), generation, params


def on_one(leaf) -> int:
    """Numbers that a device holds of it."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


CASES = {
    "one device, mismatch": (Parallelism.C, Calibration.MISMATCH, {}),
    "A": (Parallelism.A, Calibration.ROUND, {"layer": 4}),
    "A, mismatch": (Parallelism.A, Calibration.MISMATCH, {"layer": 2, "tensor": 2}),
    "B": (Parallelism.B, Calibration.ROUND, {"layer": 2, "tensor": 2}),
}


HEAVY = ("A, mismatch", "B")


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=[pytest.mark.grid] if c in HEAVY else []) for c in CASES],
    ids=str,
)
def compiled(request):
    return request.param, *compiled_chunk(*CASES[request.param])


def test_nothing_large_is_copied(compiled):
    _, program, generation, params = compiled
    memory = program.memory_analysis()
    caches = jax.tree.leaves((generation.cache, generation.drafter.cache))
    assert memory.temp_size_in_bytes < 4 * min(map(on_one, caches))
    for size in set(map(on_one, caches)):
        assert not makers(program, size)
    a_state = max(CONFIG.mlp_width, SMALL.mlp_width)  # norms and biases are no longer
    weights = {size for size in map(on_one, jax.tree.leaves(params)) if size > a_state}
    assert weights
    for size in weights:
        assert not makers(program, size)


def test_collectives_of_a_round_are_those_of_its_passes(compiled):
    """One exact pass, D - 1 in groups, the target's; and the best of every level's scores.

    What the law itself needs of split logits is counted where nothing is drafted.
    """
    name, program, *_ = compiled
    plan, calibration, sizes = CASES[name]
    found = Counter(one.kind for one in read(program.as_text()) if one.kind)
    if not sizes:
        assert not found
        return
    if calibration is not Calibration.ROUND:
        pytest.skip("both branches are in the text, of which one is taken")
    n_fuzzy = DEPTH - 1
    groups = contiguous(LAYERS, 4)
    if plan is Parallelism.A:
        sums, gathers = 1 + n_fuzzy, n_fuzzy  # embeddings; one group of four a pass
    else:
        sums = 1 + 2 * LAYERS + n_fuzzy * (1 + len(groups) + LAYERS)
        gathers = 0
    from_scores = Counter(one.kind for one in read(program.as_text()) if is_of_scores(one))
    of_target = 1 + 2 * TARGET_LAYERS
    assert found["all-gather"] - from_scores["all-gather"] == gathers
    assert found["all-reduce"] - from_scores["all-reduce"] == sums + of_target


def is_of_scores(one) -> bool:
    """A collective over numbers of the vocabulary: it has no dimension of a model's width."""
    widths = {CONFIG.width, SMALL.width}
    return bool(one.kind) and not any(widths & set(array.dims) for array in one.results)
