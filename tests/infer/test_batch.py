"""Many requests: the same texts however they share rows, calls and devices; what goes out when."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from jspec.aot.hlo import read
from jspec.drafters import load_drafter
from jspec.infer import batch as batch_module
from jspec.infer.compiling import compile_counts
from jspec.infer.engine import Engine
from jspec.infer.executables import Executables, insert_rows
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.law import Mode
from jspec.sharding import make_mesh
from jspec.state import StopReason
from jspec.testing.compile_options import usual_form
from jspec.testing.models import on_mesh, tiny_target
from tests.support.compiled import makers, n_bytes

VOCABULARY, LIMIT, ROUNDS, DEPTH = 31, 96, 3, 2
TARGET = tiny_target(
    n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=VOCABULARY
)
SETTINGS = (
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9},
    {"temperature": 0.5, "sample": 3},
)


def random_requests(count: int) -> list[Request]:
    """Prompts of three buckets, some that end with the context; a third have stop tokens."""
    rng = np.random.default_rng(7)
    return [
        Request(
            tokens=tuple(
                rng.integers(0, VOCABULARY, rng.integers(1, (20, 60, 90)[i % 3])).tolist()
            ),
            max_new_tokens=int(rng.integers(1, 40)),
            stop_ids=(4, 9) if i % 3 == 2 else (),
            **SETTINGS[i % len(SETTINGS)],
        )
        for i in range(count)
    ]


REQUESTS = random_requests(40)


def watch(index, tokens) -> int | None:
    """Some texts end where three tokens in a row add up to 40 and more."""
    sums = (i + 3 for i in range(len(tokens) - 2) if sum(tokens[i : i + 3]) >= 65)
    return next(sums, None) if index % 4 == 1 else None


@functools.cache
def engine_of(batch_size: int, prefill_rows: int | None = None, data: int = 1, **options) -> Engine:
    target = TARGET if data == 1 else on_mesh(TARGET, make_mesh(data=data))
    drafter = load_drafter("prompt-lookup", target=target, depth=DEPTH)
    settings: dict[str, Any] = {"max_length": LIMIT, "rounds_per_chunk": ROUNDS} | options
    return Engine(target, drafter, batch_size=batch_size, prefill_rows=prefill_rows, **settings)


def answers(pieces) -> list[Generation]:
    """Answers in the order of their requests; what was streamed of each is all of it."""
    found, streamed = {}, {}
    for piece in pieces:
        assert piece.index not in found
        streamed[piece.index] = streamed.get(piece.index, ()) + piece.tokens
        if piece.generation:
            found[piece.index] = piece.generation
            assert streamed[piece.index] == piece.generation.tokens
    return [found[i] for i in range(len(found))]


def untimed(answer: Generation) -> tuple:
    """All of an answer that does not depend on the clock."""
    stats = answer.stats
    counts = (stats.new_tokens, stats.target_calls, stats.draft_tokens_proposed)
    return answer.tokens, answer.stop_reason, answer.trace, counts, stats.accepted_by_depth


@functools.cache
def expected() -> list[tuple]:
    """One request after the other, each alone in an engine of one row."""
    engine = engine_of(1)
    return [untimed(answers(engine.run([request]))[0]) for request in REQUESTS]


@functools.cache
def watched() -> list[tuple]:
    """The same, ended by `watch`; what is counted of those that it ended is left out."""
    engine = engine_of(1)
    found = [
        answers(engine.run([request], watch=lambda _, tokens, i=i: watch(i, tokens)))[0]
        for i, request in enumerate(REQUESTS)
    ]
    return [without_late_counts(answer) for answer in found]


def without_late_counts(answer: Generation) -> tuple:
    """Where a chunk begins in a text, and so how far past a stop it goes, depends on the batch."""
    is_cut = answer.stop_reason == StopReason.STOP_STRING.label
    return untimed(answer)[: 3 if is_cut else None]


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch_size, prefill_rows, data",
    [
        *((1, None, 1), (16, 3, 1), (8, 2, 4)),
        *(
            pytest.param(*case, marks=pytest.mark.grid)
            for case in ((4, None, 1), (4, 4, 1), (16, 8, 1), (4, None, 2))
        ),
    ],
)
def test_texts_depend_neither_on_rows_nor_on_calls_nor_on_devices(batch_size, prefill_rows, data):
    engine = engine_of(batch_size, prefill_rows, data)
    assert [untimed(each) for each in answers(engine.run(REQUESTS))] == expected()
    found = answers(engine.run(REQUESTS, watch=watch))
    assert [without_late_counts(each) for each in found] == watched()


def test_there_are_all_kinds_of_ends():
    reasons = {reason for _, reason, *_ in expected()} | {each[1] for each in watched()}
    wanted = ("STOP_TOKEN", "STOP_STRING", "MAX_TOKENS", "LENGTH")
    assert reasons == {StopReason[name].label for name in wanted}


@pytest.mark.parametrize("batch_size, prefill_rows", [(1, None), (4, 4)])
def test_an_iterator_that_is_filled_meanwhile_gives_the_same_texts(batch_size, prefill_rows):
    def slowly():
        for i, request in enumerate(REQUESTS):
            yield from [None] * (i % 3)
            yield request

    found = answers(engine_of(batch_size, prefill_rows).run(slowly()))
    assert [untimed(each) for each in found] == expected()


def test_traces_come_with_the_tokens(batch_size=4):
    plain = answers(engine_of(1, trace=True).run(REQUESTS[:8]))
    found = answers(engine_of(batch_size, 2, trace=True).run(REQUESTS[:8], watch=watch))
    for ours, other in zip(found, plain, strict=True):
        assert ours.trace is not None and other.trace is not None
        assert len(ours.trace) == len(ours.tokens)
        for a, b in zip(ours.trace, other.trace, strict=False):
            assert (a.depth > 0) == (a.rank >= 0)
            assert (a.logprob, a.gap) == pytest.approx((b.logprob, b.gap), abs=1e-4)


# --- requests ------------------------------------------------------------------------------------


def test_a_request_is_pulled_when_a_row_is_free_for_it():
    pulled, ended, most = 0, 0, 0

    def requests():
        nonlocal pulled
        for request in REQUESTS[:12]:
            pulled += 1
            yield request

    for piece in engine_of(4, 4).run(requests()):
        most = max(most, pulled - ended)
        ended += piece.generation is not None
    assert (pulled, ended) == (12, 12)
    assert most <= 4 + 4, "rows, and those that ended in the chunk that is being told"


def test_a_bad_request_of_an_iterator_is_refused_and_the_others_go_on():
    bad = dataclasses.replace(REQUESTS[0], tokens=(1,) * LIMIT)
    found = answers(engine_of(4, 4).run(iter([REQUESTS[0], bad, REQUESTS[1], bad])))
    assert [untimed(found[0]), untimed(found[2])] == expected()[:2]
    for each in (found[1], found[3]):
        assert (each.tokens, each.stop_reason) == ((), StopReason.REFUSED.label)
        assert each.refusal is not None and "shorten the prompt" in each.refusal
        assert each.stats.new_tokens == 0
    assert found[0].refusal is None


def test_an_iterator_without_a_request_yet_is_asked_again_while_nothing_is_under_way():
    asked = []

    def requests():
        for request in (None, None, REQUESTS[0], *[None] * 200, REQUESTS[1]):
            asked.append(request)
            yield request

    pieces = engine_of(4, 4).run(requests())
    first = []
    for piece in pieces:
        first.append(piece)
        if piece.generation:
            break
    assert len(asked) < 200, "the first is told before there is a second"
    found = answers([*first, *pieces])
    assert [untimed(each) for each in found] == expected()[:2]


# --- what goes out when --------------------------------------------------------------------------


class Log:
    """What an engine does, in order: what it dispatches, and what it waits for."""

    def __init__(self, monkeypatch):
        self.events: list[str] = []
        self.n_bytes: list[int] = []
        self._kinds: dict[int, str] = {}
        self._reports: list[jax.Array] = []  # kept, so that each has an id of its own
        prefill, chunk, fetch = Executables.prefill, Executables.chunk, batch_module.fetch

        def told(kind: str, made):
            self.events.append(kind)
            self._kinds[id(made[1])] = kind
            self._reports.append(made[1])
            return made

        def spy_on_fetch(report):
            self.events.append(f"hear {self._kinds[id(report)]}")
            self.n_bytes.append(report.nbytes)
            return fetch(report)

        monkeypatch.setattr(Executables, "prefill", lambda *a: told("prefill", prefill(*a)))
        monkeypatch.setattr(Executables, "chunk", lambda *a: told("chunk", chunk(*a)))
        monkeypatch.setattr(batch_module, "fetch", spy_on_fetch)

    @property
    def waits(self) -> list[int]:
        """Chunks under way whenever one is waited for, that one included."""
        under_way, found = 0, []
        for event in self.events:
            under_way += event == "chunk"
            if event == "hear chunk":
                found.append(under_way)
                under_way -= 1
        return found


def long_request(**settings) -> Request:
    return Request(tokens=(3, 1, 2), max_new_tokens=60, temperature=1.0, **settings)


def test_a_chunk_goes_out_before_the_one_before_it_is_heard_of(monkeypatch):
    log = Log(monkeypatch)
    (answer,) = answers(engine_of(1).run([long_request()]))
    assert len(answer.tokens) == 60
    assert log.events[:4] == ["prefill", "chunk", "hear prefill", "chunk"]
    assert set(log.waits[:-1]) == {2} and len(log.waits) > 5


def test_so_it_does_where_requests_wait_but_no_row_could_be_refilled(monkeypatch):
    log = Log(monkeypatch)
    answers(engine_of(1).run([long_request(), long_request()]))
    assert log.waits.count(2) > len(log.waits) / 2


def test_a_row_that_may_end_is_heard_of_first_where_requests_wait_for_it(monkeypatch):
    """It would stand idle for a chunk; with the last request nothing waits any more."""
    log = Log(monkeypatch)
    chunks = log.events.count
    pieces = engine_of(1).run([long_request(stop_ids=(VOCABULARY - 1,)), long_request()])
    for piece in pieces:
        if piece.generation:
            break
    assert chunks("chunk") > 3 and set(log.waits) == {1}
    list(pieces)
    assert 2 in log.waits


def test_what_is_new_is_told_while_the_next_chunk_is_under_way(monkeypatch):
    log = Log(monkeypatch)
    told = []
    for piece in engine_of(1).run([long_request(stop_ids=(VOCABULARY - 1,)), long_request()]):
        under_way = log.events.count("chunk") - log.events.count("hear chunk")
        if piece.index == 0 and not piece.generation:
            told.append(under_way)
    assert len(told) > 3 and set(told) == {1}


def test_no_chunk_goes_out_that_nobody_can_need(monkeypatch):
    """Texts of one token have ended with the prompt, and a round gives at least one token."""
    log = Log(monkeypatch)
    answers(engine_of(4).run([dataclasses.replace(each, max_new_tokens=1) for each in REQUESTS]))
    assert log.events.count("chunk") == 0
    answers(engine_of(1).run([dataclasses.replace(REQUESTS[0], max_new_tokens=1 + ROUNDS)]))
    assert log.events.count("chunk") == 1


def test_only_new_tokens_are_fetched(monkeypatch):
    """Whatever the length of the texts: a few numbers, and the most that a chunk can commit."""
    log = Log(monkeypatch)
    answers(engine_of(4, 4).run(REQUESTS))
    numbers, window = 4 + DEPTH + 1, ROUNDS * (DEPTH + 1)
    assert set(log.n_bytes) == {
        4 * 4 * (numbers + window),
        4 * 4 * (numbers + 1),
        4 * (numbers + 1),
    }
    assert numbers + window < LIMIT / 4


def test_prompts_are_read_together(monkeypatch):
    """Those of rows that come free at the same time."""
    log = Log(monkeypatch)
    short = [
        dataclasses.replace(each, tokens=each.tokens[:9], max_new_tokens=2) for each in REQUESTS
    ]
    found = answers(engine_of(4, 4).run(short))
    assert log.events.count("prefill") == len(REQUESTS) / 4
    alone = answers(engine_of(1).run(short))
    assert [untimed(each) for each in found] == [untimed(each) for each in alone]


def test_nothing_is_compiled_after_the_warm_up_however_many_are_read_together():
    engine = engine_of(4, 4, rounds_per_chunk=2)
    assert engine.warm_up().compilations > 0
    before = compile_counts()
    for requests in (REQUESTS, REQUESTS[:3], REQUESTS[:1]):
        answers(engine.run(requests, watch=watch))
    spent = compile_counts().since(before)
    assert (spent.traces, spent.lowerings, spent.compilations) == (0, 0, 0)


def test_on_a_cpu_prompts_are_read_one_by_one_unless_asked(monkeypatch):
    """Which is as fast there, and keeps every bit of a text that of the text alone."""
    log = Log(monkeypatch)
    answers(engine_of(4).run(REQUESTS))
    assert log.events.count("prefill") == len(REQUESTS)


def test_what_is_under_way_is_told_before_an_engine_stops():
    asked = iter((False, False, False, True))
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for piece in engine_of(4, 4).run(REQUESTS, should_stop=lambda: next(asked)):
            seen.append(piece)
    tokens = {i: [t for piece in seen if piece.index == i for t in piece.tokens] for i in range(4)}
    for i, (wanted, *_) in enumerate(expected()[:4]):
        assert tuple(tokens[i]) == wanted[: len(tokens[i])]
        assert len(tokens[i]) >= min(len(wanted), 1 + 3 * ROUNDS)


def test_what_is_counted_of_a_text_ends_with_the_chunk_in_which_its_reader_ended_it():
    """Not with the chunk that was under way by then."""
    request = long_request()
    whole = answers(engine_of(1).run([request]))[0]
    cut = answers(engine_of(1).run([request], watch=lambda _, tokens: 4 if tokens[3:] else None))[0]
    assert cut.tokens == whole.tokens[:4]
    assert cut.stats.target_calls in (ROUNDS, 2 * ROUNDS) and cut.stats.target_calls <= 6


# --- compiled programs ---------------------------------------------------------------------------


def test_rows_are_inserted_on_a_mesh_without_a_collective_or_a_copy_of_the_cache():
    data, rows = 2, 4
    engine = engine_of(8, rows, data)
    programs = engine._executables
    prompt = engine._batch()._prompts([Request(tokens=(1,), max_new_tokens=1)] * rows * data, 32)
    whole = programs.state_shapes(*prompt)
    few = dataclasses.replace(programs, batch_size=rows * data // 2).state_shapes(*prompt)
    ints = [jax.ShapeDtypeStruct((n,), np.int32) for n in (rows * data // 2, data)]
    with jax.set_mesh(engine.target.mesh):
        jitted = jax.jit(insert_rows, donate_argnums=0)
        compiled = jitted.lower(whole, few, *ints).compile(usual_form())
    assert not [one.kind for one in read(compiled.as_text() or "") if one.kind]
    keys = whole.cache.keys[0]
    assert not makers(compiled, keys.size // data)
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == n_bytes(whole) // data
    assert memory.temp_size_in_bytes < n_bytes(few) // data


def test_each_device_reads_its_own_prompts():
    """On two devices a call of four prompts takes each the work of two."""
    request = Request(tokens=(1,), max_new_tokens=1)

    def flops(rows: int, data: int) -> float:
        engine = engine_of(4, 4, data)
        prompt = engine._batch()._prompts([request] * rows, 32)
        found = engine._executables.lower_prefill(*prompt).compile().cost_analysis()
        assert found is not None
        return found["flops"]

    assert flops(4, 2) < 1.1 * flops(2, 1) < 0.7 * flops(4, 1)


def test_all_modes_are_among_the_requests():
    assert {request.mode for request in REQUESTS} == set(Mode)
