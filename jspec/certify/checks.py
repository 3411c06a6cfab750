"""Lists all checks of a certificate in the order in which they are done: the quickest first.

The quick list has the same kinds of checks, all drafters of the config and all faults, with fewer
draws, settings and prompts, and one entry of the roster for each method.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from functools import partial

from jspec.certify import (
    exact_law,
    faults,
    float64,
    proof,
    reference_checks,
    rounding,
    walk_check,
)
from jspec.certify.certificate import Check, CheckResult
from jspec.certify.proof import TinyCase
from jspec.certify.roster import ROSTER
from jspec.certify.subject import Subject
from jspec.certify.workload import WorkloadChecks
from jspec.checkpoints.number_types import QUANTISED

FAULT_DRAWS = 8_000
"""Continuations that a planted fault of the law has to show itself in."""


def all_checks(subject: Subject) -> list[Check]:
    """List every check and every fault of this certificate."""
    is_quick = subject.options.is_quick
    case = TinyCase(batch_size=8 if is_quick else 1)
    probe = probes(case)
    return [
        *_law_checks(),
        probe[faults.THE_REFUSAL],
        probe[faults.THE_LAW],
        probe[faults.THE_REJECTION],
        *_joint_laws(is_quick),
        *_chains(case, is_quick),
        *_target_checks(case),
        probe[faults.THE_REPLAY],
        *_replays(case, is_quick),
        *_model_checks(subject),
        *_workload_checks(subject),
        *_float64_checks(is_quick),
        *(
            fault.check(probe[fault.caught_by].run, lambda: case.plain)
            for fault in faults.FAULTS.values()
        ),
    ]


def probes(case: TinyCase) -> dict[str, Check]:
    """Make the checks that must see the planted faults, at settings where none can hide."""

    def law(filter_: str, form: str) -> Callable[[], CheckResult]:
        return partial(exact_law.joint_law, 0.5, filter_, form, FAULT_DRAWS)

    covers = "what faults of the law must show in"
    mixed = "oracle tree with planted errors, all settings mixed, stop tokens"
    strangers = "drafters of another tokenizer or vocabulary"
    found = (
        Check(faults.THE_REFUSAL, "law", strangers, faults.strangers_are_refused),
        Check(faults.THE_LAW, "E4", covers, law("top-p", "tree")),
        Check(faults.THE_REJECTION, "E4", covers, law("no filter", "rejection")),
        Check(faults.THE_REPLAY, "E2", mixed, partial(proof.replayed, case, "oracle-tree", 8, 12)),
    )
    return {check.name: check for check in found}


def _law_checks() -> list[Check]:
    noise = "noise, filters and picks equal NumPy's, ties included"
    keys = "each use of randomness has its own key, by nested folds of threefry"
    walk = "paths, endings and traces on random trees with riders, cousins and broken logits"
    apart = "drafters do not draw from the law's noise"
    return [
        Check("law by its words", "law", noise, reference_checks.law_by_its_words),
        Check("streams of the noise", "law", keys, reference_checks.streams_of_the_noise),
        Check("walk by its words", "law", walk, walk_check.walk_by_its_words),
        Check("noise under rejection", "law", apart, reference_checks.noise_under_rejection),
    ]


def _joint_laws(is_quick: bool) -> Iterator[Check]:
    covers = "joint law of three tokens by enumeration, within five sigmas"
    draws, settings = (8_000, exact_law.FEW) if is_quick else (40_000, exact_law.SETTINGS)
    for (temperature, filter_), form in itertools.product(settings, exact_law.FORMS):
        name = f"{form}, T = {temperature}, {filter_}"
        run = partial(exact_law.joint_law, temperature, filter_, form, draws)
        yield Check(name, "E4", covers, run)


def _rows(is_quick: bool) -> list[tuple[str, int, bool]]:
    """List entries of the roster by batch sizes, and whether each is judged bit for bit."""
    return [
        (entry.name, size, entry.is_chain and entry.method != "none")
        for entry in ROSTER
        if entry.is_quick or not is_quick
        for size in ((8,) if is_quick else (1, 8))
    ]


def _chains(case: TinyCase, is_quick: bool) -> Iterator[Check]:
    covers = "equals plain decoding padded to as many rows bit for bit"
    for name, size, is_chain in _rows(is_quick):
        if is_chain:
            run = partial(proof.bitwise, case, name, size)
            yield Check(f"chain {name}, batch {size}", "E1", covers, run)


def _target_checks(case: TinyCase) -> list[Check]:
    forward = "prefill and cached steps equal a float64 decoder in NumPy"
    texts = "tokens, scores, ranks and endings of a tree by the decoder and law in NumPy"
    return [
        Check("forward", "target", forward, reference_checks.forward),
        Check("tiny texts", "target", texts, partial(reference_checks.tiny_texts, case)),
    ]


def _replays(case: TinyCase, is_quick: bool) -> Iterator[Check]:
    covers = "texts end at the longest length, whatever was drafted beyond it"
    yield Check("full texts", "E2", covers, partial(proof.full_texts, case))
    covers = "all settings mixed in one batch, stop tokens, by replay"
    for name, size, is_chain in _rows(is_quick):
        if not (is_quick and is_chain):  # E1 has said more of it
            run = partial(proof.replayed, case, name, size)
            yield Check(f"tiny {name}, batch {size}", "E2", covers, run)


def _model_checks(subject: Subject) -> Iterator[Check]:
    options, drafters = subject.options, subject.models.drafters
    types = subject.models.types
    if types.rounding in rounding.MEASURED:
        covers = "the bound of near-ties: how far scores move with the number of rows"
        yield Check("rounding", "target", covers, subject.check_rounding)
    if types.weights in QUANTISED:
        covers = f"perplexity of {len(subject.prompts)} prompts beside the matrices as stored"
        yield Check(f"{types.weights} matrices", "target", covers, subject.check_weights)
    settings = f"{len(subject.requests)} prompts, {options.max_new_tokens} tokens, mixed settings"
    yield Check("plain", "E2", f"plain decoding by replay: {settings}", lambda: subject.plain)
    for name, size in itertools.product(drafters, options.batch_sizes):
        run = partial(subject.check_drafter, name, size)
        yield Check(f"{name}, batch {size}", "E2", f"by replay: {settings}", run)
    covers = "a text of each setting by the decoder and law in NumPy, from the files"
    for name in drafters:
        run = partial(subject.check_reference, name)
        yield Check(f"{name} by the reference", "target", covers, run)


def _workload_checks(subject: Subject) -> Iterator[Check]:
    """Check all drafters on each workload, temperature by temperature."""
    for workload in subject.options.workloads:
        for temperature in workload.temperatures:
            where = f"{workload}, T = {temperature:g}"
            covers = f"by replay: {workload.n_prompts} prompts, {workload.max_new_tokens} tokens"
            made = functools.cache(partial(subject.workload_checks, workload, temperature))
            run = partial(_plain_of, made)
            yield Check(f"plain, {where}", "E2", covers, run)
            for name in subject.models.drafters:
                run = partial(_drafter_of, made, subject, name)
                yield Check(f"{name}, {where}", "E2", covers, run)


def _plain_of(made: Callable[[], WorkloadChecks]) -> CheckResult:
    return made().plain()


def _drafter_of(made: Callable[[], WorkloadChecks], subject: Subject, name: str) -> CheckResult:
    return made().drafter(name, subject.session.drafters[name])


def _float64_checks(is_quick: bool) -> Iterator[Check]:
    """Check the roster; in a full certificate also EasySpec's grid of settings, mesh by mesh."""
    cases = float64.FEW if is_quick else float64.CASES
    covers = (
        f"equal to plain without excuse, {float64.DEVICES} simulated devices: {' '.join(cases)}"
    )
    run = partial(float64.strictly_equal, cases, is_light=is_quick)
    yield Check("float64", "E3", covers, run)
    cases = float64.FEW_ELSEWHERE if is_quick else float64.ELSEWHERE
    covers = (
        "programs in the form of a TPU and of a GPU, kernels interpreted, equal to plain on a CPU "
        f"without excuse: {' '.join(cases)}"
    )
    run = partial(float64.strictly_equal, cases, is_light=is_quick)
    yield Check("float64, accelerators' forms", "E3", covers, run)
    grid = () if is_quick else float64.covering()
    for mesh in float64.FACTORS["mesh"] if grid else ():
        covers = (
            "pairs of plans, sizes, widths, policies and batches, equal to plain without excuse; "
            f"mesh data,layer,tensor={mesh}"
        )
        cases = [float64.argument_of(case) for case in grid if case["mesh"] == mesh]
        run = partial(float64.strictly_equal, cases)
        yield Check(f"float64, EasySpec on {mesh}", "E3", covers, run)
