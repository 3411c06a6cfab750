"""Many prompts at one temperature, judged part by part, and every part kept.

A check of hundreds of texts takes longer than anybody wants to lose. So it is done in parts, whose
findings are JSON values that the journal keeps: a run that was stopped goes on with the next part.
In reading order: `Workload`, how one is asked for, and `WorkloadChecks`, which judges drafters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from jspec.certify import proof
from jspec.certify.certificate import CheckResult
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.law import TEMPERATURES, is_temperature

PART = 40
"""Prompts of a part."""

Keep = Callable[[str, Callable[[], Any]], Any]
"""Gives what is kept under a name, which is made and kept where there is nothing: a JSON value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts, new tokens of each, rows decoded together, and temperatures, one after another."""

    n_prompts: int
    max_new_tokens: int
    batch_size: int
    temperatures: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.n_prompts} x {self.max_new_tokens}, batch {self.batch_size}"


def parse_workload(flag: str, text: str) -> Workload:
    """Read `PROMPTSxTOKENSxBATCH@T,T`, such as 200x256x8@0,1.

    Raises:
      UserError: anything else.
    """
    number = r"([1-9]\d{0,8})"
    found = re.fullmatch(rf"{number}x{number}x{number}@(\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)*)", text)
    temperatures = tuple(float(each) for each in found[4].split(",")) if found else ()
    are_different = len(set(temperatures)) == len(temperatures)
    if found is None or not are_different or not all(map(is_temperature, temperatures)):
        raise UserError(
            f"{flag}: expected PROMPTSxTOKENSxBATCH@T,T with different temperatures, each "
            f"{TEMPERATURES}, such as 200x256x8@0,1; given {text!r}"
        )
    n_prompts, tokens, batch = (int(found[i]) for i in (1, 2, 3))
    return Workload(
        n_prompts=n_prompts, max_new_tokens=tokens, batch_size=batch, temperatures=temperatures
    )


class WorkloadChecks:
    """Judges drafters on a workload at one temperature, by replay.

    Args:
      requests: all of them; they have one temperature.
      bound: of near-ties, in units of logits; None for that of the target's dtype.
      keep: what is found is kept by it, under names that begin with `name`.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        requests: Sequence[Request],
        *,
        batch_size: int,
        max_length: int,
        bound: float | None,
        keep: Keep,
    ):
        self._name, self._target, self._keep = name, target, keep
        self._options: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        self._bound = bound
        self._parts = [requests[i : i + PART] for i in range(0, len(requests), PART)]

    def plain(self) -> CheckResult:
        """Judge plain decoding itself."""
        parts = [self._plain(number) for number in range(len(self._parts))]
        each = [_found(one) for part in parts for one in part["judged"]]
        return together(each)

    def drafter(self, name: str, drafter: LoadedDrafter) -> CheckResult:
        """Judge a drafter's texts, and count those that are plain decoding's."""
        parts = [self._drafted(name, drafter, number) for number in range(len(self._parts))]
        found = together([_found(part) for part in parts])
        n_texts = sum(len(part) for part in self._parts)
        total = {key: sum(part[key] for part in parts) for key in _COUNTS}
        same = f"{n_texts - total['differing']} of {n_texts} texts equal plain's"
        tau = total["emitted"] / max(total["calls"], 1)
        note = f"{same}; {tau:.2f} tokens a call"
        if not total["proposed"]:
            note += "; nothing was drafted"
        ties = len(found.near_ties) + len(self.plain().near_ties)
        problems = found.problems
        if total["differing"] > ties:
            problems += (f"{total['differing']} texts differ from plain, with fewer near-ties",)
        return dataclasses.replace(
            found, problems=problems, note=f"{note}; {found.note}" if found.note else note
        )

    # --- parts -----------------------------------------------------------------------------------

    def _plain(self, number: int) -> dict[str, Any]:
        """Texts of plain decoding, and what replaying each of them found."""
        requests = self._parts[number]

        def do() -> dict[str, Any]:
            results = proof.decode(self._target, requests, **self._options)
            pairs = enumerate(zip(requests, results, strict=True), number * PART)
            judged = [self._replayed(i, request, result) for i, (request, result) in pairs]
            return {"texts": [list(r.tokens) for r in results], "judged": judged}

        return self._keep(f"{self._name}, plain, part {number + 1}", do)

    def _drafted(self, name: str, drafter: LoadedDrafter, number: int) -> dict[str, Any]:
        """Judge a drafter's texts; those that are plain decoding's were judged before."""
        requests, plain, first = self._parts[number], self._plain(number), number * PART

        def do() -> dict[str, Any]:
            results = proof.decode(self._target, requests, drafter, **self._options)
            same = [list(r.tokens) == text for r, text in zip(results, plain["texts"], strict=True)]
            judged = [
                plain["judged"][i]
                if same[i]
                else self._replayed(first + i, requests[i], results[i])
                for i in range(len(requests))
            ]
            found = together([_found(one) for one in judged], may_need_few=False)
            endings = proof.wrong_endings(requests, results, self._options["max_length"], first)
            problems = dict.fromkeys((*found.problems, *endings))
            return _kept(dataclasses.replace(found, problems=tuple(problems))) | {
                "differing": same.count(False),
                "emitted": sum(r.stats.new_tokens - 1 for r in results),
                "calls": sum(r.stats.target_calls for r in results),
                "proposed": sum(r.stats.draft_tokens_proposed for r in results),
            }

        return self._keep(f"{self._name}, {name}, part {number + 1}", do)

    def _replayed(self, i: int, request: Request, result: Generation) -> dict[str, Any]:
        max_length = self._options["max_length"]
        return _kept(
            proof.replay_all(
                self._target,
                [request],
                [result],
                max_length=max_length,
                bound=self._bound,
                first=i,
            )
        )


_COUNTS = ("differing", "emitted", "calls", "proposed")


def together(found: Sequence[CheckResult], *, may_need_few: bool = True) -> CheckResult:
    """Join what several texts or parts gave.

    Args:
      may_need_few: judge the share of tokens that need the bound, too.
    """
    ties = tuple(tie for one in found for tie in one.near_ties)
    whole = CheckResult(
        n_tokens=sum(one.n_tokens for one in found),
        problems=tuple(problem for one in found for problem in one.problems),
        near_ties=ties,
    )
    return proof.with_few_ties(whole) if may_need_few else whole


def _kept(found: CheckResult) -> dict[str, Any]:
    return {
        "n_tokens": found.n_tokens,
        "problems": list(found.problems),
        "near_ties": [list(tie) for tie in found.near_ties],
    }


def _found(kept: dict[str, Any]) -> CheckResult:
    return CheckResult(
        n_tokens=kept["n_tokens"],
        problems=tuple(kept["problems"]),
        near_ties=tuple((gap, bound) for gap, bound in kept["near_ties"]),
    )
