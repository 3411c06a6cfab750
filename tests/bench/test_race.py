"""What a race consists of, block by block."""

from __future__ import annotations

import types
from collections import Counter
from typing import Any

import pytest

from jspec.bench.config import BenchConfig
from jspec.bench.race import blocks_of
from jspec.bench.stages import MOST_PICTURES
from jspec.config import InferConfig, MeshConfig


@pytest.mark.parametrize("n_data", [1, 2])
def test_every_repeat_has_everything_and_pictures_are_of_the_first_batch_size(n_data):
    settings = BenchConfig(batch_sizes=[4, 1], repeats=3, contexts=[8])
    config = InferConfig(mesh=MeshConfig(data=n_data))
    benchmark: Any = types.SimpleNamespace(
        settings=settings,
        prompts=types.SimpleNamespace(by_category=dict.fromkeys("abcde", ())),
        models=types.SimpleNamespace(config=config),
    )
    for batch_size in settings.batch_sizes:
        blocks = blocks_of(benchmark, batch_size)
        n_pictures = MOST_PICTURES if (batch_size, n_data) == (4, 1) else 0
        kinds = Counter(block.kind for block in blocks)
        assert kinds == Counter(cost=3, run=3 * 5 * 2, split=1, picture=n_pictures)
        assert len({block.name for block in blocks}) == len(blocks)
        assert {block.batch_size for block in blocks} == {batch_size}


def test_all_parts_of_a_category_come_before_the_next_one():
    settings = BenchConfig(repeats=2, contexts=[], prompts_per_turn=2, has_profile=False)
    prompts = {"a": ("p",) * 5, "b": ("p",) * 2}
    benchmark: Any = types.SimpleNamespace(
        settings=settings,
        prompts=types.SimpleNamespace(by_category=prompts),
        models=types.SimpleNamespace(config=InferConfig()),
    )
    blocks = blocks_of(benchmark, 1)
    places = [(block.category, block.part) for block in blocks if block.temperature == 0]
    assert places == [("a", 0), ("a", 1), ("a", 2), ("b", 0)] * 2
    assert len({block.name for block in blocks}) == len(blocks) == 16
