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
