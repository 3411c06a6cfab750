"""What a run says of itself: records for machines, lines for people.

In reading order: the record of an answer, the summary of a run, the lines on the terminal.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jspec.config import InferConfig
from jspec.console.reader import Turn
from jspec.infer.command.compare import Comparison
from jspec.infer.results import Generation, Stats
from jspec.provenance import run_record

NEVER_ACCEPTED = 64
"""Proposed tokens after which a drafter that was never right is worth a warning."""


# --- for machines --------------------------------------------------------------------------------


def answer_record(
    turn: Turn, generation: Generation, comparison: Comparison | None = None
) -> dict[str, Any]:
    """One line of `--json`."""
    record: dict[str, Any] = {
        "id": turn.conversation.id,
        "turn": turn.number,
        "prompt": turn.text,
        "prompt_tokens": list(turn.tokens),
        "tokens": list(generation.tokens),
        "text": generation.text,
        "stop_reason": generation.stop_reason,
        "settings": turn.conversation.settings.model_dump(),
        "stats": stats_record(generation.stats),
    }
    if generation.trace is not None:
        record["trace"] = [dataclasses.asdict(token) for token in generation.trace]
    if comparison is not None:
        record |= comparison_record(comparison)
    return finite(record)


def stats_record(stats: Stats) -> dict[str, Any]:
    record = dataclasses.asdict(stats) | {"accepted_by_depth": list(stats.accepted_by_depth)}
    for name in ("spans", "reading"):  # of this process's clock
        del record[name]
    return record


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    first = comparison.first_difference
    return {
        "baseline": stats_record(comparison.baseline),
        "identical": comparison.is_identical,
        "near_ties": comparison.near_ties,
        "unexcused": comparison.unexcused,
        "first_difference": dataclasses.asdict(first) if first else None,
        "speedup": comparison.speedup,
    }


def summary_record(
    *,
    config: InferConfig,
    total: Stats,
    n_prompts: int,
    n_answers: int,
    n_before: int,
    is_complete: bool,
    comparison: Comparison | None = None,
) -> dict[str, Any]:
    """The last line of `--json`: totals, the resolved config, and where it ran."""
    summary: dict[str, Any] = {
        "prompts": n_prompts,
        "answers": n_answers,
        "answered_before": n_before,
        "complete": is_complete,
        "stats": stats_record(total),
    }
    if comparison is not None:
        summary |= comparison_record(comparison)
    summary["config"] = config.model_dump(mode="json")
    summary["run"] = run_record()
    return {"summary": finite(summary)}


def finite(value: Any) -> Any:
    """JSON has no infinity: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


# --- for people ----------------------------------------------------------------------------------


def stats_line(stats: Stats, stop_reason: str | None = None) -> str:
    """An answer, or the total, in one line."""
    parts = [f"{stats.new_tokens} new tokens"]
    if stop_reason:
        parts[0] += f" ({stop_reason})"
    parts.append(speed(stats))
    parts.append(f"prefill {stats.prefill_s:.3f} s, decode {stats.decode_s:.3f} s")
    parts.append(f"{stats.target_calls} target calls")
    parts.append(f"{stats.tokens_per_call:.2f} tokens per call")
    return " | ".join(parts)


def speed(stats: Stats) -> str:
    """Tokens a second, and of what where it is not of everything."""
    if stats.row_tokens_per_s is not None:
        return f"{stats.row_tokens_per_s:.1f} tokens/s in its row"
    return f"{stats.tokens_per_s or 0:.1f} tokens/s"


def acceptance_line(stats: Stats) -> str | None:
    """How the drafter did; None where it proposed nothing."""
    if not stats.draft_tokens_proposed:
        return None
    share = stats.draft_tokens_accepted / stats.draft_tokens_proposed
    depths = " ".join(f"{n / max(stats.target_calls, 1):.2f}" for n in stats.accepted_by_depth)
    return (
        f"{stats.drafter}: {stats.draft_tokens_accepted} of {stats.draft_tokens_proposed} proposed "
        f"tokens kept ({share:.0%}) | rounds that kept depth 1, 2, ...: {depths}"
    )


def compile_line(stats: Stats) -> str:
    return f"compiled in {stats.compile_s:.1f} s ({stats.compilations} compilations)"


def comparison_line(comparison: Comparison) -> str:
    """How the texts and the speeds compare."""
    said = "identical to plain decoding"
    if comparison.is_identical is None:
        said = "not comparable: under this rule the text depends on the drafter"
    elif not comparison.is_identical:
        first = comparison.first_difference
        at = f" at new token {first.position} (gap {first.gap:.2g})" if first else ""
        excused = "near-ties only" if not comparison.unexcused else "NOT EXCUSED"
        said = f"differs from plain decoding{at}, {excused}"
    times = f"{comparison.speedup:.2f} times" if comparison.speedup else "no"
    return f"{said} | {times} the speed of plain ({speed(comparison.baseline)})"


def drafter_warning(stats: Stats) -> str | None:
    """A drafter that is never right costs time and says nothing."""
    if stats.draft_tokens_accepted or stats.draft_tokens_proposed < NEVER_ACCEPTED:
        return None
    return (
        f"drafter {stats.drafter}: none of {stats.draft_tokens_proposed} proposed tokens was "
        "accepted; it fits this target or these prompts badly"
    )


def trace_rows(generation: Generation, name) -> list[tuple[str, ...]]:
    """A table of tokens and where they came from; `name` gives a token's text."""
    rows = []
    for i, (token, info) in enumerate(
        zip(generation.tokens, generation.trace or (), strict=False), start=1
    ):
        origin = f"draft, depth {info.depth}, rank {info.rank}" if info.depth else "target"
        rows.append(
            (str(i), str(token), name(token), origin, f"{info.logprob:.3f}", f"{info.gap:.3f}")
        )
    return rows
