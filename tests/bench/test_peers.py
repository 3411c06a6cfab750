"""The worker of transformers, which needs torch, and what it is asked."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from jspec.bench.benchmark import Benchmark
from jspec.bench.config import BenchConfig
from jspec.bench.peer_weights import directories_for_peers
from jspec.bench.peers import Peer, options_of
from jspec.bench.prompts import Prompts
from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.target import load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.config import DrafterConfig, InferConfig
from jspec.console.session import find_models
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target
from tests.support.pytrees import assert_same
from tests.support.truncated import write_truncated


def test_assisted_generation_has_the_librarys_defaults():
    own = types.SimpleNamespace(num_assistant_tokens=3, num_assistant_tokens_schedule="constant")
    own.assistant_confidence_threshold = 0.9
    small = types.SimpleNamespace(generation_config=own)
    assert options_of("assisted", small) == {"assistant_model": small}
    assert set(vars(own).values()) == {None}
    assert options_of("lookup:10", None) == {"prompt_lookup_num_tokens": 10}


def benchmark_of(target: Path, draft: Path) -> Benchmark:
    small = DrafterConfig(drafter="draft-model", drafter_path=str(draft))
    config = InferConfig(target=str(target), drafters={"small": small})
    models = find_models(config, config.drafters)
    variants = {str(models.types): models}
    prompts = Prompts(by_category={}, n_passed_over=0)
    settings, peers = BenchConfig(), ("transformers plain",)
    return Benchmark(
        name="some", settings=settings, variants=variants, prompts=prompts, peers=peers
    )


def test_a_draft_without_an_embedding_is_written_out_whole_and_directories_stay_where_they_are(
    tmp_path,
):
    target = tiny_target()
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    write_truncated(tmp_path / "draft", target)
    benchmark = benchmark_of(tmp_path / "target", tmp_path / "draft")
    at, assistant = directories_for_peers(benchmark, tmp_path / "written")
    assert (at, assistant) == (tmp_path / "target", tmp_path / "written" / "assistant")
    assert assistant is not None
    small, whole = load_beside(target, tmp_path / "draft"), load_target(assistant)
    assert_same(whole.params, small.params)
    assert whole.model == small.model

    of_itself = benchmark_of(tmp_path / "target", tmp_path / "target")
    assert directories_for_peers(of_itself, tmp_path / "none") == (at, at)
    assert not (tmp_path / "none").exists()


@pytest.mark.parity
def test_the_worker_decodes_what_the_engine_does(tmp_path):
    target = tiny_target()
    write_checkpoint(tmp_path, target.params, target.model.config)
    peer = Peer(str(tmp_path), "--threads", "1")
    found = [peer.decode([1, 2, 3], n) for n in (1, 5)]
    peer.close()
    (answer,) = Engine(target, max_length=64).decode([Request(tokens=(1, 2, 3), max_new_tokens=5)])
    assert found[1]["tokens"] == [*answer.tokens] and found[0]["tokens"] == [answer.tokens[0]]
    assert [one["calls"] for one in found] == [1, 5]
    assert all(0 < one["first_s"] <= one["seconds"] for one in found)
