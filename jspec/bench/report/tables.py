"""The tables: every contestant's terms, the same under vLLM's names, raw numbers by category."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jspec.bench.report.colours import Mark
from jspec.bench.report.markup import (
    ABSENT,
    element,
    number,
    percent,
    signed_percent,
    table,
    text,
)
from jspec.bench.summary import Row, counted
from jspec.bench.terms import Interval

COLUMNS = (
    ("contestant", "", "who decodes"),
    ("T", "", "temperature of sampling; 0 is greedy"),
    ("batch", "", "texts decoded together"),
    ("speedup", "", "whole calls, plain decoding's time over this one's: median [95 % interval]"),
    ("tau", "mean acceptance length", "tokens a target call, the target's own included"),
    ("r(n)", "", "a target forward over n nodes, in forwards over one"),
    ("c_d", "", "a round's whole draft, in plain rounds"),
    ("overhead", "", "what else a round costs, in plain rounds"),
    ("predicted", "", "tau / (r(n) + c_d + overhead), decoding alone"),
    ("measured", "", "decoding alone, prompts not counted: median [95 % interval]"),
    ("error", "", "predicted over measured, less one"),
    ("identical", "", "texts that are plain decoding's, token for token"),
)
"""Name, the name that vLLM has for it, and what it is."""

VLLM_COLUMNS = (
    ("contestant", "", "who decodes"),
    ("T", "", "temperature of sampling; 0 is greedy"),
    ("batch", "", "texts decoded together"),
    ("kept / proposed", "draft acceptance rate", "drafted tokens kept, of those proposed"),
    ("kept by depth", "per-position acceptance rate", "rounds that kept depth 1, 2, ..., in %"),
    ("tokens/s", "output token throughput", "all new tokens over wall time, prompts included"),
    ("first token, ms", "mean TTFT", "reading a text's prompt, up to its first token"),
    ("next token, ms", "mean TPOT", "for each token after the first, in its own row"),
)

RAW_COLUMNS = (
    ("contestant", "", "who decodes"),
    ("T", "temperature", "temperature of sampling"),
    ("batch", "", "texts decoded together"),
    ("category", "", "kind of text"),
    ("repeat", "", "which pass over all contestants"),
    ("texts", "", "how many"),
    ("seconds", "", "whole call, all texts"),
    ("prompt s", "", "reading the prompts"),
    ("decoding s", "", "all after that"),
    ("new tokens", "generation_tokens", "generated"),
    ("calls", "spec_decode_num_drafts", "target forwards in decoding"),
    ("tokens / call", "mean acceptance length", "(new tokens - texts) / calls"),
    ("proposed", "spec_decode_num_draft_tokens", "drafted tokens"),
    ("kept", "spec_decode_num_accepted_tokens", "drafted tokens kept"),
    ("load", "", "the machine's load average"),
)


def heads(columns: Iterable[tuple[str, str, str]]) -> list[str]:
    """Column heads with vLLM's name under ours and the meaning as a tooltip."""
    found = []
    for name, theirs, meaning in columns:
        below = element("small", "vLLM: " + text(theirs)) if theirs else ""
        found.append(element("span", text(name) + below, title=meaning))
    return found


def named(contestant: str, looks: Mapping[str, Mark]) -> str:
    """A contestant with its colour."""
    style = f"--colour:{looks[contestant].colour}"
    return element("span", text(contestant), class_="name", style=style)


def spread(value: Interval | None) -> str:
    """A median with its interval; without one where it comes from a single number."""
    if value is None:
        return ABSENT
    if value.n < 2:
        return f"{value.median:.2f}"
    return f"<b>{value.median:.2f}</b> <i>[{value.low:.2f}, {value.high:.2f}]</i>"


def main_table(rows: Sequence[Row], looks: Mapping[str, Mark]) -> str:
    """One line a contestant, temperature and batch size."""

    def line(row: Row) -> list[str]:
        terms, same = row.terms, row.same
        r = f"{terms.r:.2f} <i>n = {terms.n_nodes}</i>" if terms else ABSENT
        identical = ABSENT if same is None else f"{same.identical}/{same.texts}"
        if same and same.near_ties:
            identical += f" <i>{counted(same.near_ties, 'near-tie')}</i>"
        return [
            named(row.contestant, looks),
            f"{row.temperature:g}",
            str(row.batch_size),
            spread(row.speedup),
            number(row.tau),
            r,
            number(terms.c_d if terms else None),
            number(terms.overhead if terms else None),
            number(row.predicted),
            spread(row.decode_speedup),
            signed_percent(row.error),
            identical,
        ]

    return table(heads(COLUMNS), map(line, rows), label="contestants and their terms")


def vllm_table(rows: Sequence[Row], looks: Mapping[str, Mark]) -> str:
    """The metrics that vLLM prints, of the same run."""

    def line(row: Row) -> list[str]:
        found = row.metrics
        depths = " ".join(f"{100 * share:.0f}" for share in found.per_position_acceptance_rate)
        return [
            named(row.contestant, looks),
            f"{row.temperature:g}",
            str(row.batch_size),
            percent(found.draft_acceptance_rate),
            depths or ABSENT,
            number(found.output_token_throughput, 0),
            number(found.mean_ttft_ms, 1),
            number(found.mean_tpot_ms),
        ]

    return table(heads(VLLM_COLUMNS), map(line, rows), label="metrics under vLLM's names")


def raw_table(runs: Sequence[Mapping[str, Any]], looks: Mapping[str, Mark]) -> str:
    """Every run as it was recorded."""

    def line(run: Mapping[str, Any]) -> list[str]:
        return [
            named(run["contestant"], looks),
            f"{run['temperature']:g}",
            str(run["batch_size"]),
            text(run["category"]),
            str(run["repeat"]),
            str(run["texts"]),
            number(run["seconds"], 3),
            number(run["prefill_s"], 3),
            number(run["decode_s"], 3),
            str(run["new_tokens"]),
            str(run["target_calls"]),
            number(run["tokens_per_call"]),
            text(ABSENT if (n := run["draft_tokens_proposed"]) is None else n),
            text(ABSENT if (n := run["draft_tokens_accepted"]) is None else n),
            number(run.get("load"), 1),
        ]

    return table(heads(RAW_COLUMNS), map(line, runs), label="every run")
