"""What judges texts: right ones pass, and each kind of mistake is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jspec.certify import proof, reference, reference_checks
from jspec.certify.certificate import CheckResult
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.write import write_checkpoint
from jspec.infer.results import Generation, TokenInfo
from jspec.testing.models import tiny_target
from tests.support.gguf_files import convert

TARGET = tiny_target()
REQUESTS = proof.mixed_requests(TARGET, 2)
SAMPLED = 1
"""The second request has a temperature, so that its log-probabilities are judged."""


@pytest.fixture(scope="module")
def results() -> list[Generation]:
    assert REQUESTS[SAMPLED].temperature > 0
    return proof.decode(TARGET, REQUESTS, trace=True)


def changed(results: list[Generation], **changes) -> list[Generation]:
    """The results, with something else in that of the sampled request."""
    return [results[0], dataclasses.replace(results[SAMPLED], **changes)]


def with_trace(results: list[Generation], **changes) -> list[Generation]:
    """The results, the first token of the sampled request traced otherwise."""
    first, *rest = traced(results)
    return changed(results, trace=(dataclasses.replace(first, **changes), *rest))


def traced(results: list[Generation]) -> list[TokenInfo]:
    """The trace of the sampled request."""
    trace = results[SAMPLED].trace
    assert trace is not None
    return list(trace)


def problems_by_reference(results: list[Generation]) -> tuple[str, ...]:
    weights = reference.weights_in_memory(TARGET)
    config = TARGET.model.config
    return reference_checks.judged_by_reference(
        config, weights, REQUESTS, results, "float32"
    ).problems


def test_the_reference_says_what_is_wrong_with_a_text(results):
    assert problems_by_reference(results) == ()
    first, *rest = results[SAMPLED].tokens
    other = changed(results, tokens=((first + 1) % TARGET.vocab_size, *rest))
    assert problems_by_reference(other)[0].startswith(f"request 1, token 0: {first + 1}, not")


@pytest.mark.parametrize(("field", "said"), [("gap", "gap"), ("logprob", "log-probability")])
def test_the_reference_says_what_is_wrong_with_a_trace(results, field, said):
    first, *_ = traced(results)
    (problem,) = problems_by_reference(with_trace(results, **{field: getattr(first, field) + 1}))
    assert problem.startswith(f"request 1, token 0: {said}")


def test_endings_are_judged(results):
    assert proof.wrong_endings(REQUESTS, results, proof.MAX_LENGTH) == []
    tokens, stats = results[SAMPLED].tokens, results[SAMPLED].stats
    wrong = {
        "tokens, not": {"tokens": tokens[:-1]},
        "ended by": {"stop_reason": "cache full"},
        "counts that do not add up": {
            "stats": dataclasses.replace(stats, target_calls=stats.target_calls + 1)
        },
    }
    for said, changes in wrong.items():
        found = proof.wrong_endings(REQUESTS, changed(results, **changes), proof.MAX_LENGTH)
        assert any(said in line for line in found), said
        assert all(line.startswith("request 1: ") for line in found)


def test_a_text_that_goes_past_a_stop_token_is_a_problem(results):
    tokens = results[SAMPLED].tokens
    request = dataclasses.replace(REQUESTS[SAMPLED], stop_ids=(tokens[4],))
    n_right = tokens.index(tokens[4]) + 1
    (problem,) = proof.wrong_endings([request], [results[SAMPLED]], proof.MAX_LENGTH)
    assert problem == f"request 0: {len(tokens)} tokens, not {n_right}"


def test_more_other_texts_than_near_ties_are_a_problem(results):
    other = changed(results, tokens=(0, *results[SAMPLED].tokens))
    assert proof.compared(CheckResult(), results, results).note.startswith("2 of 2 texts equal")
    assert proof.compared(CheckResult(), other, results).problems
    tie = CheckResult(near_ties=((1e-5, 2e-4),))
    assert not proof.compared(tie, other, results).problems
    assert not proof.compared(CheckResult(), other, results, n_plain_ties=1).problems


def test_equality_is_of_tokens_reasons_and_bits(results):
    assert proof.unequal(results, results) == []
    first, *_ = traced(results)
    wrong = {
        "tokens differ from position 0": changed(results, tokens=(-1, *results[SAMPLED].tokens)),
        "something, not": changed(results, stop_reason="something"),
        "differ in their bits": with_trace(results, gap=first.gap * (1 + 1e-6)),
    }
    for said, others in wrong.items():
        (problem,) = proof.unequal(others, results)
        assert said in problem


def test_the_reference_reads_the_same_weights_from_a_directory_and_from_a_gguf_file(tmp_path):
    target = tiny_target(has_tied_head=True)
    write_checkpoint(tmp_path / "hf", target.params, target.model.config)
    file = convert(tmp_path / "hf", tmp_path / "m.gguf", "llama")
    one, other = (
        reference.weights_on_disk(find_checkpoint(path)) for path in (tmp_path / "hf", file)
    )
    assert one is not None and other is not None and one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)
