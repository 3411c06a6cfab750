"""The worker of transformers, which needs torch, and what it is asked."""

from __future__ import annotations

import types

import pytest

from jspec.bench.peers import Peer, options_of
from jspec.checkpoints.write import write_checkpoint
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target


def test_assisted_generation_has_the_librarys_defaults():
    own = types.SimpleNamespace(num_assistant_tokens=3, num_assistant_tokens_schedule="constant")
    own.assistant_confidence_threshold = 0.9
    small = types.SimpleNamespace(generation_config=own)
    assert options_of("assisted", small) == {"assistant_model": small}
    assert set(vars(own).values()) == {None}
    assert options_of("lookup:10", None) == {"prompt_lookup_num_tokens": 10}


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
