"""All checks of a certificate, in the order in which they are done: what fails soonest first.

The quick list has the same kinds of checks, all drafters of the config and all faults, with fewer
draws, settings and prompts, and one entry of the roster for each method.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from functools import partial

from jspec.certify import exact_law, float64, grid, planted, tiny, walk_check
from jspec.certify.records import Check, CheckResult
from jspec.certify.roster import entries
from jspec.certify.subject import Subject

_Run = Callable[[], CheckResult]

FAULT_DRAWS = 8_000
"""Continuations that a planted fault of the law has to show itself in."""


class Tiny:
    """The tiny case, made when it is first needed."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size

    @functools.cached_property
    def case(self) -> tiny.TinyCase:
        return tiny.make_case(batch_size=self._batch_size)


def all_checks(subject: Subject, *, is_quick: bool) -> list[Check]:
    """Every check and every fault of this certificate."""
    shared = Tiny(batch_size=8 if is_quick else 1)
    return [
        *_of_the_law(),
        *_joint_laws(shared, is_quick),
        *_bitwise(shared, is_quick),
        *_replays(shared, is_quick),
        *_of_the_models(subject),
        _float64(is_quick),
        *([] if is_quick else _grid()),
        *_faults(shared),
    ]


def _check(name: str, tier: str, covers: str, run: _Run) -> Check:
    return Check(name=name, tier=tier, covers=covers, run=run)


def _of_the_law() -> list[Check]:
    return [
        _check(
            "law by its words",
            "law",
            "noise, filters and picks equal NumPy's, ties included",
            tiny.law_by_its_words,
        ),
        _check(
            "streams of the noise",
            "law",
            "each use of randomness has its own key, by nested folds of threefry",
            tiny.streams_are_apart,
        ),
        _check(
            "walk by its words",
            "law",
            "paths, endings and traces on random trees with riders, cousins and broken logits",
            walk_check.walk_by_its_words,
        ),
        _check(
            "noise under rejection",
            "law",
            "drafters do not draw from the law's noise",
            tiny.rejection_draws_apart,
        ),
        _check(
            planted.THE_REFUSAL,
            "law",
            "drafters of another tokenizer or vocabulary",
            planted.strangers_are_refused,
        ),
    ]


def _joint_laws(shared: Tiny, is_quick: bool) -> list[Check]:
    covers = "what faults of the law must show in"
    names = (planted.THE_LAW, planted.THE_REJECTION)
    checks = [_check(name, "E4", covers, probes(shared)[name]) for name in names]
    draws, settings = (8_000, exact_law.FEW) if is_quick else (40_000, exact_law.SETTINGS)
    for (temperature, filter_), form in itertools.product(settings, exact_law.FORMS):
        checks.append(
            _check(
                f"{form}, T = {temperature}, {filter_}",
                "E4",
                "joint law of three tokens by enumeration, within five sigmas",
                partial(exact_law.joint_law, temperature, filter_, form, draws),
            )
        )
    return checks


def _bitwise(shared: Tiny, is_quick: bool) -> list[Check]:
    return [
        _check(
            f"chain {entry.name}, batch {size}",
            "E1",
            "equals plain decoding padded to as many rows bit for bit",
            lambda name=entry.name, size=size: tiny.bitwise(shared.case, name, size),
        )
        for entry in entries(is_quick=is_quick)
        if entry.is_chain and entry.method != "none"
        for size in _tiny_batches(is_quick)
    ]


def _tiny_batches(is_quick: bool) -> tuple[int, ...]:
    return (8,) if is_quick else (1, 8)


def _replays(shared: Tiny, is_quick: bool) -> list[Check]:
    checks = [
        _check(
            "forward",
            "target",
            "prefill and cached steps equal a float64 decoder in NumPy",
            tiny.forward_equals_reference,
        ),
        _check(
            "tiny texts",
            "target",
            "tokens, scores, ranks and endings of a tree by the decoder and law in NumPy",
            lambda: tiny.judge_tree_by_reference(shared.case),
        ),
        _check(
            planted.THE_REPLAY,
            "E2",
            "oracle tree with planted errors, all settings mixed, stop tokens",
            probes(shared)[planted.THE_REPLAY],
        ),
        _check(
            "full texts",
            "E2",
            "texts end at the longest length, whatever was drafted beyond it",
            lambda: tiny.texts_that_fill_the_cache(shared.case),
        ),
    ]
    for entry in entries(is_quick=is_quick):
        if is_quick and entry.is_chain:
            continue  # E1 has said more of it
        for size in _tiny_batches(is_quick):
            checks.append(
                _check(
                    f"tiny {entry.name}, batch {size}",
                    "E2",
                    "all settings mixed in one batch, stop tokens, by replay",
                    lambda name=entry.name, size=size: tiny.replayed(shared.case, name, size),
                )
            )
    return checks


def _of_the_models(subject: Subject) -> list[Check]:
    asked = subject.asked
    settings = f"{len(subject.requests)} prompts, {asked.max_new_tokens} tokens, mixed settings"
    checks = [_check("plain", "E2", f"plain decoding by replay: {settings}", subject.check_plain)]
    for name in subject.models.drafters:
        for size in asked.batch_sizes:
            checks.append(
                _check(
                    f"{name}, batch {size}",
                    "E2",
                    f"by replay: {settings}",
                    partial(subject.check_drafter, name, size),
                )
            )
    for name in subject.models.drafters:
        checks.append(
            _check(
                f"{name} by the reference",
                "target",
                "a text of each setting by the decoder and law in NumPy, from the files",
                partial(subject.check_reference, name),
            )
        )
    return checks


def _float64(is_quick: bool) -> Check:
    cases = float64.FEW if is_quick else float64.CASES
    return _check(
        "float64",
        "E3",
        f"equal to plain without excuse, {float64.DEVICES} simulated devices: {' '.join(cases)}",
        partial(float64.strictly_equal, cases, is_light=is_quick),
    )


def _grid() -> list[Check]:
    """Every pair of EasySpec's settings, a check for each mesh."""
    cases = grid.covering()
    return [
        _check(
            f"float64, EasySpec on {mesh}",
            "E3",
            "pairs of plans, sizes, widths, policies and batches, equal to plain without excuse; "
            f"mesh data,layer,tensor={mesh}",
            partial(
                float64.strictly_equal,
                [grid.argument_of(case) for case in cases if case["mesh"] == mesh],
            ),
        )
        for mesh in grid.FACTORS["mesh"]
    ]


def _probe_law(form: str, draws: int) -> CheckResult:
    """At a temperature and with a filter that the faults of the law cannot hide behind."""
    return exact_law.joint_law(0.5, "top-p" if form == "tree" else "no filter", form, draws)


def probes(shared: Tiny) -> dict[str, _Run]:
    """The checks that planted faults must be seen by."""
    return {
        planted.THE_LAW: partial(_probe_law, "tree", FAULT_DRAWS),
        planted.THE_REJECTION: partial(_probe_law, "rejection", FAULT_DRAWS),
        planted.THE_REPLAY: lambda: tiny.replayed(shared.case, "oracle-tree", 8, 12),
        planted.THE_REFUSAL: planted.strangers_are_refused,
    }


def _faults(shared: Tiny) -> list[Check]:
    run = probes(shared)
    return [
        planted.plant(name, run[judge], lambda: shared.case)
        for name, judge in planted.CAUGHT_BY.items()
    ]
