"""What a run's records say: one `SummaryRow` a contestant, temperature and batch size, and advice.

`rows.summarise` makes it; the terminal, the table and the report show it, and `--json` prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jspec.bench.estimates import Estimate
from jspec.bench.terms import Interval, Terms

Record = Mapping[str, Any]

PLAIN = "plain"
PEERS = "transformers "
"""What the names of contestants from the other library begin with."""

SKIPPED = "skipped"
"""Kind of a record that has a `reason` in place of numbers."""


def counted(count: int, word: str) -> str:
    """A number and what it counts: "1 text", "2 near-ties"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceptance:
    """How deep drafts are kept, depth 1 first.

    Attributes:
      unconditional: share of all rounds that kept a drafted token at this depth.
      conditional: share of the rounds that kept the depth before.
    """

    unconditional: tuple[float, ...]
    conditional: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """The same run under the names that vLLM gives its metrics.

    Attributes:
      mean_acceptance_length: tokens a round, the target's own included; tau.
      draft_acceptance_rate: kept over proposed; None where nothing was proposed.
      per_position_acceptance_rate: share of rounds that kept position 1, 2, ...
      output_token_throughput: all new tokens over wall time, prompts included; the median of runs.
      mean_ttft_ms: reading a text's prompt, up to its first token.
      mean_tpot_ms: for a token after the first, in its own row.
    """

    mean_acceptance_length: float
    draft_acceptance_rate: float | None
    per_position_acceptance_rate: tuple[float, ...]
    output_token_throughput: float
    mean_ttft_ms: float
    mean_tpot_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One contestant at one temperature and batch size, in one number type.

    Attributes:
      contestant: "plain", a drafter's label, or "transformers ...".
      types: the number types' name; empty where records do not tell.
      is_peer: it is of the other library.
      speedup: over plain decoding of the same types, whole calls, prompts included; a ratio for
        every repeat and turn (a category, or some prompts of it), of which this is the median. None
        for plain.
      pooled: plain decoding's time of all turns over this one's, with its interval over turns.
      over_fastest: the same over the plain decoding that is fastest of all number types.
      decode_speedup: the same of the time without prompts.
      by_category: `speedup` of one category alone.
      tau: tokens a target forward, the first token of a text not counted.
      tau_estimate: the same with its interval over prompts; None where prompts are not told apart.
      tau_by_category: the same of one category.
      terms: what a round costs at the mean length of these texts; None where it was not measured.
      terms_by_context: the same at each measured length.
      predicted: speedup of decoding that tau and the terms give; the host's time is not in it.
      error: predicted over measured (`decode_speedup`), less one.
      acceptance: None for plain and for peers.
      same: of one repeat, how many `texts` there are, how many are plain decoding's token for token
        (`identical`), how many differences two equal scores explain (`near_ties`), and how many
        nothing does (`unexcused`). None where texts cannot be compared (a peer that samples).
      split: milliseconds a round of its stages (`propose_ms`, `verify_ms`, `commit_ms`), dispatched
        apart: more than they cost together. None where they were not profiled.
    """

    contestant: str
    temperature: float
    batch_size: int
    types: str
    is_peer: bool
    speedup: Interval | None
    pooled: Estimate | None
    over_fastest: Estimate | None
    decode_speedup: Interval | None
    by_category: dict[str, Interval]
    tau: float
    tau_estimate: Estimate | None
    tau_by_category: dict[str, float]
    terms: Terms | None
    terms_by_context: dict[int, Terms]
    predicted: float | None
    error: float | None
    acceptance: Acceptance | None
    same: dict[str, int] | None
    metrics: Metrics
    split: dict[str, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forwards:
    """Target forwards over n nodes at one batch size and length of text, in one number type.

    Attributes:
      seconds: by number of nodes, medians.
      r: the same relative to one node.
      line: `intercept` and `slope` of the line nearest to `r`; None with fewer than two sizes.
      plain_round_ms: a whole round of plain decoding.
    """

    batch_size: int
    context: int
    types: str
    seconds: dict[int, float]
    r: dict[int, float]
    line: dict[str, float] | None
    plain_round_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurningPoint:
    """From which batch size on speculation loses, at one temperature.

    Attributes:
      types: the number types, where there are several; else empty.
      speedups: of the best drafter at each batch size, measured.
      best: that drafter's label at each.
      batch_size: where the line between two measured sizes crosses 1; None where none does.
      between: those two sizes.
      is_resolved: no interval of these medians includes 1.
    """

    temperature: float
    types: str
    speedups: dict[int, float]
    best: dict[int, str]
    batch_size: float | None
    between: tuple[int, int] | None
    is_resolved: bool

    @property
    def text(self) -> str:
        """All of it in a line."""
        first, last = min(self.speedups), max(self.speedups)
        if self.batch_size is not None and self.between is not None:
            said = (
                f"do not speculate from batch size {self.batch_size:.1f} on (interpolated): the "
                "best drafter gains at {} and loses at {}".format(*self.between)
            )
        elif max(self.speedups.values()) < 1:
            tried = f"{first} to {last}" if first < last else f"{first}"
            said = f"do not speculate here: every drafter loses to plain decoding, batch {tried}"
        elif first < last:
            said = f"the best drafter gains at the batch sizes measured, up to {last}"
        else:
            said = f"the best drafter gains at batch {first}"
        doubt = "" if self.is_resolved else "; not resolved, intervals include 1"
        types = f" in {self.types}" if self.types else ""
        return f"at T = {self.temperature:g}{types}, {said}{doubt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Where not to speculate, in a line.

    Attributes:
      category: None where it holds for all of them together.
    """

    contestant: str
    temperature: float
    batch_size: int
    category: str | None
    speedup: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """How plain decoding's answers ended at one temperature, in one number type.

    Attributes:
      answers: how many there are.
      repeats: of these, cut before they repeated themselves.
      stops: of these, ended by a stop token.
      mean_tokens: of what is left of them.
    """

    temperature: float
    types: str
    answers: int
    repeats: int
    stops: int
    mean_tokens: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """All that a run's records say.

    Attributes:
      settings: the settings record.
      provenance: of that record: versions, commit, device, ...
      rows: by temperature, batch size, then plain, drafters, peers.
      cuts: where answers were cut; by temperature and number types.
      forwards: by batch size and context.
      turns: one a temperature.
      advice: where a drafter loses by more than its interval.
      unexcused: differences from plain decoding that no near-tie explains, peers left out.
      changed: contestants whose texts changed between repeats; there should be none.
      skipped: why something was not measured, a line each.
      load: smallest and largest load average.
      n_repeats: complete ones, at the batch size that has fewest; 0 where none is, and the rows are
        of what the first one has.
    """

    settings: Record
    provenance: Record
    rows: tuple[SummaryRow, ...]
    cuts: tuple[Cuts, ...]
    forwards: tuple[Forwards, ...]
    turns: tuple[TurningPoint, ...]
    advice: tuple[Advice, ...]
    unexcused: int
    changed: tuple[str, ...]
    skipped: tuple[str, ...]
    load: tuple[float, float]
    n_repeats: int

    @property
    def has_types(self) -> bool:
        """Whether there are several number types."""
        return len({row.types for row in self.rows}) > 1
