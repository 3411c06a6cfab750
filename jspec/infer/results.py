"""What comes back from decoding; host values only.

In reading order: `throughput`, the one definition of a speed; `Stats`, what an answer cost, and
`total_stats` of several; `Generation`, an answer; `Piece`, a part of one as it is committed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

Span = tuple[float, float]
"""From when to when, in seconds on the clock of `time.perf_counter`."""


def throughput(new_tokens: int, wall_s: float) -> float:
    """Tokens a second: all new tokens over the wall time that they took.

    The wall time includes reading the prompts, and neither loading nor compiling.
    """
    return new_tokens / wall_s if wall_s > 0 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """What an answer cost, or several together (a total).

    Attributes:
      new_tokens: the stop token included.
      target_calls: target forwards in decoding; a prefill is not one.
      tokens_per_call: decoded tokens a target forward yields, its own included (tau).
      accepted_by_depth: rounds in which the drafted token at depth 1, 2, ... was kept.
      prefill_s: seconds from where the device could begin to read the prompt to where its first
        token was known here; prompts that are read in one call take the same ones. Of a total:
        seconds in which any prompt was read.
      decode_s: the rest of `wall_s`.
      wall_s: seconds in which a row of these answers was active. Rows of a batch are active at the
        same time, so those of a total are fewer than those of its answers together.
      tokens_per_s: `throughput` of a total; None for a single answer, whose row had neighbours.
      row_tokens_per_s: an answer's own speed, its tokens over the time that its row was active;
        None for a total, as the speeds of rows cannot be added up.
      compile_s, compilations: of the engine so far, in none of the times above.
      spans: when the rows were active.
      reading: when their prompts were read, which is part of it.
    """

    new_tokens: int = 0
    target_calls: int = 0
    tokens_per_call: float = 0.0
    draft_tokens_accepted: int = 0
    draft_tokens_proposed: int = 0
    accepted_by_depth: tuple[int, ...] = ()
    prefill_s: float = 0.0
    decode_s: float = 0.0
    wall_s: float = 0.0
    tokens_per_s: float | None = None
    row_tokens_per_s: float | None = None
    compile_s: float = 0.0
    compilations: int = 0
    drafter: str = ""
    rule: str = ""
    spans: tuple[Span, ...] = dataclasses.field(default=(), repr=False)
    reading: tuple[Span, ...] = dataclasses.field(default=(), repr=False)


def total_stats(answers: Iterable[Stats], **engine: Any) -> Stats:
    """The totals of some answers of one engine; rates are ratios of totals.

    Args:
      engine: fields that are the engine's: drafter, rule, compile_s, compilations; those of the
        last answer where they are left out.
    """
    rows = list(answers)
    calls = sum(row.target_calls for row in rows)
    columns = itertools.zip_longest(*(row.accepted_by_depth for row in rows), fillvalue=0)
    new_tokens = sum(row.new_tokens for row in rows)
    spans = _merged(span for row in rows for span in row.spans)
    reading = _merged(span for row in rows for span in row.reading)
    wall_s, prefill_s = (sum(end - start for start, end in each) for each in (spans, reading))
    of_the_last = {name: getattr(row, name) for row in rows[-1:] for name in _OF_THE_ENGINE}
    return Stats(
        new_tokens=new_tokens,
        target_calls=calls,
        tokens_per_call=tokens_per_call(
            sum(r.tokens_per_call * r.target_calls for r in rows), calls
        ),
        draft_tokens_accepted=sum(row.draft_tokens_accepted for row in rows),
        draft_tokens_proposed=sum(row.draft_tokens_proposed for row in rows),
        accepted_by_depth=tuple(sum(column) for column in columns),
        prefill_s=prefill_s,
        decode_s=max(wall_s - prefill_s, 0.0),
        wall_s=wall_s,
        tokens_per_s=throughput(new_tokens, wall_s),
        spans=spans,
        reading=reading,
        **of_the_last | engine,
    )


_OF_THE_ENGINE = ("drafter", "rule", "compile_s", "compilations")


def tokens_per_call(decoded: float, target_calls: int) -> float:
    """Decoded tokens a target forward, of which the first comes from the prefill; 0 without one."""
    return decoded / target_calls if target_calls else 0.0


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same times without overlap: (0, 2), (1, 3), (5, 6) are (0, 3), (5, 6)."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return tuple(merged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """Where a token came from; see `jspec.state.TokenTrace`."""

    depth: int
    rank: int
    logprob: float
    gap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """An answer.

    Attributes:
      tokens: the new tokens, the stop token included.
      text: what they say, without the stop token and cut before a stop string; None without a
        tokenizer.
      stop_reason: stop_token, stop_string, max_tokens, length, bad_logits or refused.
      stats: what it cost.
      trace: where every token came from, if asked for.
      refusal: why the request could not be served; None where it could.
    """

    tokens: tuple[int, ...]
    text: str | None
    stop_reason: str
    stats: Stats
    trace: tuple[TokenInfo, ...] | None = None
    refusal: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Something new of one answer.

    Attributes:
      index: which request it answers.
      tokens: committed since the last piece.
      text: shown since the last piece; it may lag behind the tokens, and is all there at the end.
      generation: the whole answer, in its last piece.
    """

    index: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    generation: Generation | None = None


def whole_answers(pieces: Iterable[Piece], count: int) -> list[Generation]:
    """Collect the whole answers of some pieces, in the order of their requests."""
    found = {piece.index: piece.generation for piece in pieces if piece.generation}
    return [found[index] for index in range(count)]
