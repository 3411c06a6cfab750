"""What passes take: the tables of published shapes, and relations between plans."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.checkpoints.known import KNOWN
from jspec.models.config import DecoderConfig
from jspec.models.layer_groups import contiguous, singles
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec.hardware import SHIPPED, Hardware
from jspec.plan.easyspec.passes import (
    Mesh,
    Work,
    attention_s,
    exact_s,
    fuzzy_s,
    layers_s,
    mlp_s,
    vocabulary_s,
)
from jspec.plan.easyspec.shapes import ModelShape

# Qwen2 and Qwen2.5 of a size have the same layers.
IDS = {
    "8B": "meta-llama/Meta-Llama-3-8B-Instruct",
    "3B": "meta-llama/Llama-3.2-3B-Instruct",
    "1B": "meta-llama/Llama-3.2-1B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "70B": "meta-llama/Meta-Llama-3-70B-Instruct",
}
SHAPES = {name: ModelShape(name=name, config=KNOWN[id_]) for name, id_ in IDS.items()}
NVLINK, SLOW = SHIPPED["a100"], SHIPPED["a100"].model_copy(update={"all_reduce": 45e-6})


# Attention and MLP of a layer in MB, attention's share, all layers and head in GB, cache in KiB.
BYTES = {
    "8B": (83.9, 352.3, 0.19, 13.96, 1.05, 128),
    "3B": (50.3, 151.0, 0.25, 5.64, 0.79, 112),
    "1B": (21.0, 100.7, 0.17, 1.95, 0.53, 32),
    "7B": (58.7, 407.4, 0.13, 13.05, 1.09, 56),
    "1.5B": (11.0, 82.6, 0.12, 2.62, 0.47, 28),
    "0.5B": (3.7, 26.1, 0.12, 0.72, 0.27, 12),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_published_shapes(name):
    shape = SHAPES[name]
    attention, mlp = shape.attention_bytes() / 1e6, shape.mlp_bytes / 1e6
    layers, head = shape.layers_bytes / 1e9, shape.head_bytes / 1e9
    cache = shape.n_layers * shape.kv_bytes() / 1024
    found = (attention, mlp, attention / (attention + mlp), layers, head, cache)
    decimals = (1, 1, 2, 2, 2, 0)
    assert tuple(map(round, found, decimals)) == BYTES[name]


# Milliseconds of all layers: tensor parallelism over 1, 2, 4, 8; A, A+ and C with N = 4, then 8;
# B over 4 devices with N = 4, over 8 with 4 and with 8. None: heads cannot be split.
PASSES = [
    (SHIPPED["paper"], "8B", "28.2 31.1 31.5 31.9 15.0 16.7 14.7 12.4 14.2 12.2 16.9 17.1 14.4"),
    (NVLINK, "8B", "8.55 5.16 3.49 2.75 7.52 2.84 8.55 7.27 1.78 8.55 2.82 1.85 1.77"),
    (NVLINK, "1B", "1.37 1.32 1.13 1.13 1.18 .69 1.21 1.11 .59 1.21 .73 .72 .64"),
    (NVLINK, "0.5B", ".96 1.53 - - .65 .93 .58 .55 .87 .50 - - -"),
    (SLOW, "8B", "8.55 7.59 6.24 5.81 7.80 4.49 8.55 7.43 3.47 8.55 4.62 3.86 3.58"),
    (SLOW, "1B", "1.37 2.53 2.50 2.66 1.32 1.51 1.21 1.19 1.44 1.21 1.68 1.77 1.59"),
    (SHIPPED["h100"], "8B", "5.21 3.53 2.57 2.13 4.59 1.81 5.21 4.44 1.17 5.21 1.83 1.31 1.19"),
    (SHIPPED["h100"], "1B", ".98 1.02 .95 .99 .78 .56 .77 .72 .52 .76 .59 .62 .55"),
]

WAYS = [
    *((Parallelism.B, Mesh(1, t), 1) for t in (1, 2, 4, 8)),
    *(
        (plan, Mesh(n, 1), n)
        for n in (4, 8)
        for plan in (Parallelism.A, Parallelism.A_PLUS, Parallelism.C)
    ),
    *((Parallelism.B, Mesh(1, t), n) for t, n in ((4, 4), (8, 4), (8, 8))),
]


@pytest.mark.parametrize(("hardware", "name", "printed"), PASSES)
def test_passes_of_the_reference_table(hardware, name, printed):
    """Within 0.5 %, or 0.01 ms where that is more."""
    shape = SHAPES[name]
    for (plan, mesh, n), ms in zip(WAYS, printed.split(), strict=True):
        if ms == "-":
            assert shape.config.n_heads % mesh.devices(plan, "heads")
            continue
        groups = contiguous(shape.n_layers, n)
        found = 1e3 * layers_s(shape, hardware, Work(), plan, mesh, groups)
        assert found == pytest.approx(float(ms), rel=5e-3, abs=0.01), (plan, mesh, n)


SMALL = ModelShape(
    name="small",
    config=DecoderConfig(
        vocab_size=1000,
        width=64,
        mlp_width=160,
        n_layers=11,
        n_heads=8,
        n_kv_heads=4,
        head_dim=8,
        max_positions=256,
    ),
)
FREE = Hardware(name="no floors", bandwidth=1e9, flops=1e12, memory=1e9)


@given(
    plan=st.sampled_from(Parallelism),
    layer=st.sampled_from([1, 2, 4]),
    tensor=st.sampled_from([1, 2]),
    n=st.integers(1, 8),
    rows=st.integers(1, 64),
)
def test_groups_of_one_are_the_exact_pass(plan, layer, tensor, n, rows):
    work, mesh = Work(tokens=rows), Mesh(layer, tensor)
    one = fuzzy_s(SMALL, NVLINK, work, plan, mesh, singles(11))
    assert one == exact_s(SMALL, NVLINK, work, plan, mesh)
    assert fuzzy_s(SMALL, NVLINK, work, plan, mesh, contiguous(11, 1)) == one
    free = SHIPPED["paper"].model_copy(update={"all_reduce": 0.0})
    grouped = fuzzy_s(SMALL, free, work, plan, mesh, contiguous(11, n))
    assert grouped <= exact_s(SMALL, free, work, plan, mesh)


def test_what_every_plan_pays():
    """One collective at a time, with a price that nothing else reaches."""
    mesh, groups, work = Mesh(layer=4, tensor=2), contiguous(11, 4), Work()
    reduce = FREE.model_copy(update={"all_reduce": {2: 1e3, 8: 1e6}, "all_gather": {2: 0.1}})
    gather = FREE.model_copy(update={"all_gather": {4: 1e3, 8: 0.1}})
    multi = sum(len(group) > 1 for group in groups)

    def paid(hardware, plan):
        return layers_s(SMALL, hardware, work, plan, mesh, groups)

    assert (len(groups), multi) == (5, 2)
    assert paid(gather, Parallelism.A) == pytest.approx(multi * 1e3, rel=1e-3)
    assert paid(gather, Parallelism.A_PLUS) == pytest.approx(multi * 1e3, rel=1e-3)
    assert paid(gather, Parallelism.B) < 1 and paid(gather, Parallelism.C) < 1
    assert paid(reduce, Parallelism.A) == pytest.approx((11 + 5) * 1e3, rel=1e-3)
    assert paid(reduce, Parallelism.A_PLUS) == pytest.approx(11 * 1e6 + 5 * 1e3, rel=1e-3)
    assert paid(reduce, Parallelism.B) == pytest.approx((11 + 5) * 1e6, rel=1e-3)
    assert paid(reduce, Parallelism.B_MINUS) == pytest.approx(5 * 1e6, rel=1e-3)
    assert paid(reduce, Parallelism.C) < 1


def test_wide_passes_meet_the_compute_ceiling():
    slow = FREE.model_copy(update={"flops": 2e9})
    narrow, wide = (mlp_s(SMALL, slow, Work(tokens=n)) for n in (1, 64))
    assert mlp_s(SMALL, FREE, Work(tokens=64)) == mlp_s(SMALL, FREE, Work()) == narrow
    assert wide == pytest.approx(2 * SMALL.mlp_weights * 64 / 2e9)
    measured = FREE.model_copy(update={"rows": {1: 1.0, 64: 3.0}})
    assert mlp_s(SMALL, measured, Work(tokens=64)) == pytest.approx(3 * narrow)
    few, many = (vocabulary_s(SMALL, slow, Work(tokens=n), Parallelism.C, Mesh()) for n in (1, 64))
    assert many > 10 * few


def test_a_longer_context_is_read_by_attention_alone():
    short, long = (Work(context=n) for n in (0, 10_000))
    extra = 10_000 * 11 * SMALL.kv_bytes() / 1e9
    both = [exact_s(SMALL, FREE, work, Parallelism.C, Mesh()) for work in (short, long)]
    assert both[1] - both[0] == pytest.approx(extra)
    assert mlp_s(SMALL, FREE, short) == mlp_s(SMALL, FREE, long)


def test_key_value_heads_are_repeated_where_devices_do_not_divide_them():
    assert [SMALL.kv_heads(t) for t in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert SMALL.attention_weights(8) > SMALL.attention_weights() / 8
    assert SMALL.attention_weights(4) == SMALL.attention_weights() / 4
    float32 = dataclasses.replace(SMALL, weight_bytes=4)
    assert float32.layers_bytes == 2 * SMALL.layers_bytes


def test_a_floor_that_was_measured_with_a_text_has_read_it():
    known = FREE.model_copy(update={"attention_floor": 1e-3, "context": 100, "bandwidth": 1e9})
    small = SHAPES["1B"]

    def at(context: int) -> float:
        return attention_s(small, known, Work(context=context))

    of_weights = small.attention_bytes() / 1e9
    assert at(0) == at(100) == pytest.approx(max(of_weights, 1e-3))
    assert at(2100) == pytest.approx(of_weights + 2000 * small.kv_bytes() / 1e9)
