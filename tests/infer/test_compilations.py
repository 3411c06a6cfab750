"""After warm-up nothing is traced, lowered or compiled again, on one device and on a mesh."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from jspec.drafters import load_drafter
from jspec.infer.compiling import compile_counts
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.law import Mode
from jspec.sharding import make_mesh
from jspec.testing.models import on_mesh, tiny_target

VOCABULARY, LIMIT = 32, 40
SIZES = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 4, "n_kv_heads": 4, "head_dim": 4}
MESHES = {"one device": {}, "mesh": {"data": 2, "tensor": 4}}


@functools.cache
def warm_engine(name: str):
    """An engine that has compiled all it will ever need, and what that took. Its sizes are found in
    no other test, so that nothing was compiled before.
    """
    target = tiny_target(vocab_size=VOCABULARY, **SIZES)
    if sizes := MESHES[name]:
        target = on_mesh(target, make_mesh(**sizes))
    drafter = load_drafter("prompt-lookup", target=target, depth=2)
    engine = Engine(target, drafter, batch_size=2, max_length=LIMIT, rounds_per_chunk=3)
    return engine, engine.warm_up()


@pytest.fixture(params=MESHES)
def warm(request):
    return warm_engine(request.param)


def served(engine, requests, **options) -> int:
    return sum(piece.generation is not None for piece in engine.run(requests, **options))


def random_request(rng) -> Request:
    """Any prompt, limit, setting, stop and seed; each filter on or off."""
    return Request(
        tokens=tuple(rng.integers(0, VOCABULARY, rng.integers(1, LIMIT)).tolist()),
        max_new_tokens=int(rng.integers(1, 20)),
        temperature=float(rng.choice([0, 0.3, 1.7])),
        top_k=int(rng.choice([0, 1, 9])),
        top_p=float(rng.choice([1, 0.8])),
        min_p=float(rng.choice([0, 0.1])),
        seed=int(rng.integers(0, 2**32)),
        sample=int(rng.integers(0, 2**32)),
        stop_ids=tuple(rng.integers(0, VOCABULARY, rng.integers(0, 9)).tolist()),
    )


def test_nothing_compiles_after_warm_up(warm):
    """Batches that are full, half empty and refilled; watched ones; one mode after the other."""
    engine, _ = warm
    rng = np.random.default_rng(0)
    requests = [random_request(rng) for _ in range(14)]
    assert {request.mode for request in requests} == set(Mode)
    before = compile_counts()
    assert served(engine, requests) == len(requests)
    assert served(engine, requests[:1]) == 1 and served(engine, []) == 0
    for mode in (Mode.GREEDY, Mode.PLAIN):
        assert served(engine, [r for r in requests if r.mode is mode]) >= 1
    assert served(engine, requests[:5], watch=lambda index, tokens: index % 2 or None) == 5
    spent = compile_counts().since(before)
    assert (spent.traces, spent.lowerings, spent.compilations) == (0, 0, 0)


def test_an_engine_has_few_programs(warm):
    """Two prompt buckets, three modes of the law, and what moves rows: under twelve."""
    _, spent = warm
    assert spent.compilations == spent.lowerings == 2 + 3 + 3 < 12


def test_another_engine_of_the_same_shapes_has_nothing_to_compile(warm):
    engine, _ = warm
    twin = Engine(engine.target, engine.drafter, batch_size=2, max_length=LIMIT, rounds_per_chunk=3)
    assert twin.warm_up().compilations == 0 == twin.compilations
    assert twin.compile_s == 0


def test_counting_sees_a_new_shape_and_warming_up_for_given_requests_compiles_no_more():
    """The counters are alive: one more row is a new program, once. Each mode is a chunk, so that
    the greedy requests may also come alone."""
    engine, _ = warm_engine("one device")
    wider = Engine(engine.target, engine.drafter, batch_size=3, max_length=LIMIT)
    request = Request(tokens=(1, 2, 3), max_new_tokens=4)
    spent = wider.warm_up([request, dataclasses.replace(request, temperature=1.0)])
    assert (spent.compilations, spent.lowerings) == (5, 5)  # spread, insert, deactivate, 2 chunks
    assert spent.seconds > 0 and spent.traces >= 4
    assert served(wider, [request] * 4) == 4
    assert wider.compilations == 5
