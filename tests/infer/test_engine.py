"""The engine: queue and rows, stops, limits, bad weights, and texts that depend on nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters import load_drafter
from jspec.infer.engine import STOP_IDS, Engine
from jspec.infer.executables import Executables
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.request import Request, sampling_of
from jspec.infer.results import Generation
from jspec.law import Mode
from jspec.state import StopReason
from jspec.testing.models import tiny_target

VOCABULARY, LIMIT, ROWS = 31, 64, 3
TARGET = tiny_target(
    n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=VOCABULARY
)
DRAFTER = load_drafter("prompt-lookup", target=TARGET, depth=3)
SETTINGS = (
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9},
    {"temperature": 0.5, "sample": 3},
)


def engine_of(target=TARGET, **options) -> Engine:
    settings: dict[str, Any] = {
        "batch_size": ROWS,
        "max_length": LIMIT,
        "rounds_per_chunk": 4,
    } | options
    return Engine(target, DRAFTER, **settings)


def random_requests(count: int) -> list[Request]:
    """Unequal prompts, budgets and settings; a third have a stop token."""
    rng = np.random.default_rng(0)
    return [
        Request(
            tokens=tuple(rng.integers(0, VOCABULARY, rng.integers(1, 20)).tolist()),
            max_new_tokens=int(rng.integers(1, 30)),
            stop_ids=(4, 9) if i % 3 == 2 else (),
            **SETTINGS[i % len(SETTINGS)],
        )
        for i in range(count)
    ]


def finished(events) -> dict[int, Generation]:
    return {piece.index: piece.generation for piece in events if piece.generation}


def alone(request: Request, target=TARGET) -> Generation:
    """In a batch of which the other rows are empty."""
    return finished(engine_of(target).run([request]))[0]


REQUESTS = random_requests(10)


@pytest.fixture(scope="module")
def events():
    return list(engine_of().run(REQUESTS))


@pytest.fixture(scope="module")
def results(events):
    found = finished(events)
    return [found[i] for i in range(len(REQUESTS))]


# --- the queue -----------------------------------------------------------------------------------


def test_every_request_is_served_first_come_first_served(events):
    started, ended, at_most = [], [], 0
    for event in events:
        if event.index not in started:
            assert event.index == len(started)
            started.append(event.index)
        at_most = max(at_most, len(started) - len(ended))
        if event.generation:
            ended.append(event.index)
    assert sorted(ended) == list(range(len(REQUESTS))) and ended != sorted(ended)
    assert at_most == ROWS


def test_answers_come_in_the_order_of_their_requests(results):
    """Though they end in another."""
    assert [answer.tokens for answer in engine_of().decode(REQUESTS)] == [r.tokens for r in results]


def test_requests_with_few_stop_ids_compile_alike():
    """Whether a config names two of them or five: there is always room for `STOP_IDS`."""
    sizes = [Engine(TARGET, max_stop_ids=n).max_stop_ids for n in (0, 2, STOP_IDS, STOP_IDS + 1)]
    assert sizes == [STOP_IDS] * 3 + [STOP_IDS + 1]


def test_streamed_pieces_make_the_result(events, results):
    streamed: dict[int, tuple[int, ...]] = {i: () for i in range(len(REQUESTS))}
    for event in events:
        assert event.tokens or event.generation
        streamed[event.index] += event.tokens
    assert [streamed[i] for i in range(len(REQUESTS))] == [result.tokens for result in results]


def test_what_is_counted_of_a_row_adds_up(results):
    """The first token is the prefill's, each round adds the target's own; lookups draft 3 or 0."""
    for result in results:
        stats, depths = result.stats, result.stats.accepted_by_depth
        assert stats.new_tokens == len(result.tokens)
        assert stats.new_tokens == 1 + stats.target_calls + stats.draft_tokens_accepted
        assert stats.draft_tokens_accepted == sum(depths) and len(depths) == 3
        assert list(depths) == sorted(depths, reverse=True) and depths[0] <= stats.target_calls
        assert stats.draft_tokens_proposed % 3 == 0
        assert 3 * depths[0] <= stats.draft_tokens_proposed <= 3 * stats.target_calls
    assert sum(result.stats.draft_tokens_accepted for result in results) > 3


def test_a_text_does_not_depend_on_its_batch_nor_on_its_place(results):
    for request, result in zip(REQUESTS, results, strict=True):
        lone = alone(request)
        assert (lone.tokens, lone.stop_reason) == (result.tokens, result.stop_reason)
    backwards = finished(engine_of().run(REQUESTS[::-1]))
    assert [backwards[i].tokens for i in range(len(REQUESTS))] == [r.tokens for r in results][::-1]


def test_the_first_token_is_filtered_as_any_other():
    """Of one candidate there is one choice, whatever the noise."""
    greedy = Request(tokens=(3, 1, 2), max_new_tokens=1)
    noisy = [dataclasses.replace(greedy, temperature=3.0, top_k=1, seed=i) for i in range(6)]
    found = finished(engine_of().run([greedy, *noisy]))
    assert len({result.tokens for result in found.values()}) == 1


def test_continuing_from_a_prefix_gives_the_same_text(results):
    """Noise belongs to the absolute place in the text, wherever the prompt ended."""
    requests, wanted = [], []
    for request, result in zip(REQUESTS, results, strict=True):
        cut = len(result.tokens) // 2
        if cut:
            rest = request.max_new_tokens - cut
            longer = request.tokens + result.tokens[:cut]
            requests.append(dataclasses.replace(request, tokens=longer, max_new_tokens=rest))
            wanted.append(result.tokens[cut:])
    found = finished(engine_of().run(requests))
    assert [found[i].tokens for i in range(len(requests))] == wanted
    assert len(wanted) > 6


def test_a_jit_of_ones_own_says_what_the_engine_says(results):
    """Prefill and loop inside one program, all prompts as one batch."""
    requests = [r for r in REQUESTS if r.mode is not Mode.FULL]
    longest = max(len(r.tokens) for r in requests)
    tokens = np.zeros((len(requests), longest), np.int32)
    for row, request in enumerate(requests):
        tokens[row, : len(request.tokens)] = request.tokens
    length = np.asarray([len(r.tokens) for r in requests], np.int32)
    sampling = sampling_of(requests, max_length=LIMIT, max_stop_ids=2)
    program = dataclasses.replace(engine_of().program, mode=Mode.PLAIN)

    @jax.jit
    def mine(tokens, length, sampling):
        params = (TARGET.params, DRAFTER.params)
        state = prefill(params, program, tokens, length, sampling, capacity=LIMIT)
        return decode_loop(params, program, state).context

    context = jax.device_get(mine(tokens, length, sampling))
    texts = [
        tuple(context.tokens[row, length[row] : context.length[row]].tolist())
        for row in range(len(requests))
    ]
    theirs = [r.tokens for q, r in zip(REQUESTS, results, strict=True) if q in requests]
    assert texts == theirs


# --- stops and limits ----------------------------------------------------------------------------


def test_every_text_ends_where_and_why_it_has_to(results):
    reasons = set()
    for request, result in zip(REQUESTS, results, strict=True):
        stops = [i for i, token in enumerate(result.tokens) if token in request.stop_ids]
        reasons.add(result.stop_reason)
        if result.stop_reason == StopReason.STOP_TOKEN.label:
            assert stops == [len(result.tokens) - 1]
        else:
            assert result.stop_reason == StopReason.MAX_TOKENS.label and not stops
            assert len(result.tokens) == request.max_new_tokens
        assert result.stats.new_tokens == len(result.tokens)
    assert len(reasons) == 2


@pytest.mark.parametrize(
    "n_prompt,budget,count,reason",
    [
        (60, 3, 3, StopReason.MAX_TOKENS),
        (60, 4, 4, StopReason.MAX_TOKENS),
        (60, 5, 4, StopReason.LENGTH),
        (63, 1, 1, StopReason.MAX_TOKENS),
        (63, 2, 1, StopReason.LENGTH),
    ],
)
def test_the_end_of_the_context_and_that_of_the_budget_are_told_apart(
    n_prompt, budget, count, reason
):
    result = alone(Request(tokens=(3,) * n_prompt, max_new_tokens=budget))
    assert (len(result.tokens), result.stop_reason) == (count, reason.label)


def test_a_stop_token_at_the_limit_is_a_stop_token(results):
    request, result = REQUESTS[0], results[0]
    stop = result.tokens[-1]
    at = result.tokens.index(stop)
    both = dataclasses.replace(request, max_new_tokens=at + 1, stop_ids=(stop,))
    ended = alone(both)
    assert ended.tokens == result.tokens[: at + 1]
    assert ended.stop_reason == StopReason.STOP_TOKEN.label


def test_watch_ends_a_row_which_serves_the_next_request(results):
    """The text is cut where the watch says, the rest of its chunk is never told."""
    asked = []

    def watch(index, tokens):
        asked.append(index)
        return 2 if index in (1, 3) and len(tokens) >= 2 else None

    events = list(engine_of().run(REQUESTS, watch=watch))
    found = finished(events)
    for i, result in enumerate(results):
        is_cut = i in (1, 3) and len(result.tokens) >= 2
        assert found[i].tokens == (result.tokens[:2] if is_cut else result.tokens)
        assert found[i].stop_reason == (
            StopReason.STOP_STRING.label if is_cut else result.stop_reason
        )
    told = [t for e in events if e.index == 1 for t in e.tokens]
    assert tuple(told) == results[1].tokens[:2]
    assert set(asked) == set(range(len(REQUESTS)))
    assert len(results[1].tokens) > 2 < len(results[3].tokens)


def test_a_row_that_watch_ended_is_decoded_for_the_chunk_under_way_and_no_further(
    monkeypatch, results
):
    active, chunk = [], Executables.chunk

    def spy(programs, state, mode):
        active.append(int(state.context.is_active.sum()))
        return chunk(programs, state, mode)

    monkeypatch.setattr(Executables, "chunk", spy)
    long = [r for r, q in zip(REQUESTS, results, strict=True) if len(q.tokens) > 15][:2]
    ended = finished(engine_of().run(long, watch=lambda index, _: 1 if index else None))
    assert len(ended[1].tokens) == 1 < 15 < len(ended[0].tokens)
    assert active[0] == 2 and set(active[1:]) <= {0, 1} and 1 in active


def test_a_stop_token_comes_before_a_stop_string_that_ends_with_it(results):
    index = next(i for i, r in enumerate(results) if r.stop_reason == StopReason.STOP_TOKEN.label)
    for keep_less, reason in ((0, StopReason.STOP_TOKEN), (1, StopReason.STOP_STRING)):

        def watch(_, tokens, keep_less=keep_less):
            is_whole = len(tokens) == len(results[index].tokens)
            return len(tokens) - keep_less if is_whole else None

        ended = finished(engine_of().run([REQUESTS[index]], watch=watch))[0]
        assert ended.stop_reason == reason.label
        assert len(ended.tokens) == len(results[index].tokens) - keep_less


# --- bad weights ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poison(results) -> int:
    """The rarest of the tokens that some text goes on from."""
    whole = [r.tokens + q.tokens for q, r in zip(REQUESTS, results, strict=True)]
    middles = {
        t
        for q, r in zip(REQUESTS, results, strict=True)
        for t in r.tokens[:-1]
        if t not in q.tokens
    }
    return min(middles, key=lambda token: sum(token in text for text in whole))


@pytest.fixture(scope="module")
def poisoned(poison):
    """A target that knows nothing but NaN after one token, and everything else as before."""
    embedding = TARGET.params["embedding"].at[poison].set(jnp.nan)
    return dataclasses.replace(TARGET, params=TARGET.params | {"embedding": embedding})


def test_bad_logits_end_their_own_row_only_and_leave_nothing_behind(poison, poisoned, results):
    """The rows they ended in are used again: poisoned prompts come first, and in between."""
    pairs = list(zip(REQUESTS, results, strict=True))
    clean = [(q, r) for q, r in pairs if poison not in q.tokens + r.tokens]
    bad = Request(tokens=(3, poison, 5), max_new_tokens=9)
    requests = [q for q, _ in clean]
    requests = [bad, bad, *requests[:3], bad, *requests[3:]]
    found = finished(engine_of(poisoned).run(requests))
    ours = [(request, found[i]) for i, request in enumerate(requests)]
    ends = {(result.tokens, result.stop_reason) for request, result in ours if request is bad}
    assert ends == {((), StopReason.BAD_LOGITS.label)}
    texts = [result.tokens for request, result in ours if request is not bad]
    assert texts == [result.tokens for _, result in clean] and len(texts) > 4


def test_bad_logits_in_mid_text_keep_what_was_said(poison, poisoned, results):
    hit = [i for i, r in enumerate(results) if poison in r.tokens[:-1]]
    for index in (i for i in hit if poison not in REQUESTS[i].tokens):
        ended, at = alone(REQUESTS[index], poisoned), results[index].tokens.index(poison)
        assert ended.tokens == results[index].tokens[: at + 1]
        assert ended.stop_reason == StopReason.BAD_LOGITS.label
