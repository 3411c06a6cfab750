"""The rows of a run on the device: admitted, decoded, heard of. Nothing in here waits but `hear`.

Calls go out one after the other and the device works them off in that order. Each leaves a report,
whose copy to the host begins with the call, and `hear` takes the oldest. What was dispatched after
it goes on meanwhile.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jspec.hosts import fetch, fetch_soon
from jspec.infer.admission import Call, calls_for
from jspec.infer.executables import Executables
from jspec.infer.prefill import SMALLEST_BUCKET, prompt_bucket
from jspec.infer.report import Report, RowCounts, report_width
from jspec.infer.request import Request, sampling_of
from jspec.infer.results import Span
from jspec.infer.state import DecodeState
from jspec.law import Mode
from jspec.state import StopReason

PADDING = Request(tokens=(0,), max_new_tokens=1)
"""In a row of a call for which there is no prompt."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Row:
    """What the host knows of a request under way.

    Attributes:
      index: the request's number.
      limit: most new tokens that its text may have.
      place: in the batch.
      tokens, trace: new tokens that were told, and where they came from.
      n_heard: new tokens that were heard of.
      at_least, at_most: tokens that calls under way add, unless the row ends.
      read: when its prompt was read, from where the device could begin it to its first token here.
      is_over: it has ended, on the device or by its reader; later reports are not about it.
      is_told: its answer was told.
    """

    index: int
    request: Request
    limit: int
    place: int = -1
    tokens: list[int] = dataclasses.field(default_factory=list)
    trace: list[tuple] = dataclasses.field(default_factory=list)
    n_heard: int = 0
    at_least: int = 0
    at_most: int = 0
    read: Span = (0.0, 0.0)
    is_over: bool = False
    is_told: bool = False

    @property
    def must_end(self) -> bool:
        """Whether its text is whole, whatever the calls under way say of it."""
        return self.n_heard + self.at_least >= self.limit

    @property
    def may_end(self) -> bool:
        """Whether it may end in the calls under way."""
        return bool(self.request.stop_ids) or self.n_heard + self.at_most >= self.limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class News:
    """What a report says of a row.

    Attributes:
      tokens, trace: the new ones.
      reason: why it ended on the device, if it did.
      at: when this was known here.
    """

    row: Row
    tokens: list[int]
    trace: list[tuple]
    reason: StopReason
    counts: RowCounts
    at: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sent:
    """A call under way.

    Attributes:
      rows: the rows of its report that are anyone's.
      at_least, at_most: new tokens of a row.
      at: when it was dispatched.
    """

    report: jax.Array
    rows: Sequence[tuple[int, Row]]
    at_least: int
    at_most: int
    at: float
    is_prefill: bool


class Batch:
    """Rows that are decoded together.

    Args:
      most: rows of a prefill call on each device.
      max_stop_ids: of a request.
    """

    def __init__(self, executables: Executables, *, most: int, max_stop_ids: int):
        self._executables, self._most, self._max_stop_ids = executables, most, max_stop_ids
        self._rows: list[Row | None] = [None] * executables.batch_size
        self._state: DecodeState | None = None
        self._goes_on = np.ones(executables.batch_size, bool)
        self._sent: collections.deque[Sent] = collections.deque()
        self._heard = 0.0
        program = executables.program(Mode.GREEDY)
        self._max_depth = program.max_depth
        self._width = report_width(program, executables.rounds)

    # --- what is known ---------------------------------------------------------------------------

    @property
    def n_free(self) -> int:
        return self._rows.count(None)

    @property
    def n_chunks(self) -> int:
        """Chunks under way."""
        return sum(not sent.is_prefill for sent in self._sent)

    @property
    def is_silent(self) -> bool:
        """Whether no call is under way."""
        return not self._sent

    @property
    def is_quiet(self) -> bool:
        """Whether no row is occupied either."""
        return self.is_silent and self.n_free == len(self._rows)

    @property
    def may_go_on(self) -> bool:
        """Whether some row may need another chunk."""
        return any(row is not None and not row.must_end for row in self._rows)

    @property
    def may_end(self) -> bool:
        """Whether some row may end in the calls under way."""
        return any(row is not None and row.may_end for row in self._rows)

    @property
    def is_next_prefill(self) -> bool:
        """Whether `hear` waits for prompts to be read."""
        return bool(self._sent) and self._sent[0].is_prefill

    # --- calls -----------------------------------------------------------------------------------

    def admit(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows, no more than there are free places."""
        if not rows:
            return
        programs, data = self._executables, self._executables.data
        per_device = programs.batch_size // data
        places = range(per_device)
        free = [
            [place for place in places if self._rows[device * per_device + place] is None]
            for device in range(data)
        ]
        buckets = [prompt_bucket(len(row.request.tokens), programs.capacity) for row in rows]
        for call in calls_for(buckets, free, self._most):
            at, placed = time.perf_counter(), []
            requests: list[Request] = []
            for device, chosen in enumerate(call.placed):
                for number, place in chosen:
                    row = rows[number]
                    row.place = device * per_device + place
                    self._rows[row.place], self._goes_on[row.place] = row, True
                    placed.append((len(requests), row))
                    requests.append(row.request)
                requests += [PADDING] * (call.rows - len(chosen))
            self._send(self.read(call, requests), placed, at, at_least=1, is_prefill=True)

    def _prompts(self, requests: Sequence[Request], bucket: int) -> tuple[Any, Any, Any]:
        """Tokens, lengths and settings as arrays."""
        tokens = np.zeros((len(requests), bucket), np.int32)
        for row, request in enumerate(requests):
            tokens[row, : len(request.tokens)] = request.tokens
        length = np.asarray([len(request.tokens) for request in requests], np.int32)
        sampling = sampling_of(
            requests, max_length=self._executables.capacity, max_stop_ids=self._max_stop_ids
        )
        return tokens, length, sampling

    def read(self, call: Call, requests: Sequence[Request]) -> jax.Array:
        """Read prompts, padding included, and put the rows in their places; the report."""
        programs = self._executables
        rows, report = programs.prefill(*self._prompts(requests, call.bucket))
        if programs.batch_size == 1:
            self._state = rows
            return report
        if self._state is None:
            self._state = programs.empty(*self._prompts([PADDING] * programs.data, SMALLEST_BUCKET))
        place = np.zeros((programs.data, call.rows), np.int32)
        for device, chosen in enumerate(call.placed):
            place[device, : len(chosen)] = [each for _, each in chosen]
        counts = [len(chosen) for chosen in call.placed]
        self._state = programs.insert(self._state, rows, place.reshape(-1), counts)
        return report

    def decode(self, mode: Mode) -> None:
        """A chunk of rounds for all rows."""
        assert self._state is not None
        at = time.perf_counter()
        if not self._goes_on.all():
            self._state = self._executables.deactivate(self._state, self._goes_on.copy())
            self._goes_on[:] = True
        self._state, report = self._executables.chunk(self._state, mode)
        rows = [(place, row) for place, row in enumerate(self._rows) if row is not None]
        self._send(report, rows, at, at_least=self._executables.rounds, is_prefill=False)

    def try_chunks(self, modes: Iterable[Mode]) -> None:
        """Run each mode once, with no row active, and wait for it."""
        assert self._state is not None
        nobody = np.zeros(len(self._rows), bool)
        self._state = self._executables.deactivate(self._state, nobody)
        for mode in modes:
            self._state, report = self._executables.chunk(self._state, mode)
            fetch(report)

    def _send(self, report, rows, at: float, *, at_least: int, is_prefill: bool) -> None:
        fetch_soon(report)
        width = 1 if is_prefill else self._width
        for _, row in rows:
            row.at_least += at_least
            row.at_most += width
        self._sent.append(
            Sent(
                report=report,
                rows=rows,
                at_least=at_least,
                at_most=width,
                at=at,
                is_prefill=is_prefill,
            )
        )

    # --- hearing of them -------------------------------------------------------------------------

    def hear(self) -> list[News]:
        """Wait for the oldest call; what it says, in the order of the requests.

        Rows that have ended are free.
        """
        sent = self._sent.popleft()
        table = fetch(sent.report)
        now = time.perf_counter()
        report = Report(table, self._max_depth, sent.at_most, self._executables.trace)
        news = []
        for number, row in sorted(sent.rows, key=lambda one: one[1].index):
            row.at_least -= sent.at_least
            row.at_most -= sent.at_most
            if row.is_over:
                continue
            if sent.is_prefill:
                row.read = max(sent.at, self._heard), now
            tokens, trace, reason = (
                report.tokens(number),
                report.trace(number),
                report.reason(number),
            )
            row.n_heard += len(tokens)
            if reason is not StopReason.NONE:
                self._free(row)
            counts = report.counts(number)
            news.append(
                News(row=row, tokens=tokens, trace=trace, reason=reason, counts=counts, at=now)
            )
        self._heard = now
        return news

    def stop(self, row: Row) -> None:
        """Its reader has ended a row: it is told to the device with the next chunk."""
        if not row.is_over:
            self._goes_on[row.place] = False
            self._free(row)

    def _free(self, row: Row) -> None:
        row.is_over = True
        self._rows[row.place] = None
