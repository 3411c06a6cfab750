"""What a target keeps of drafts in groups, by decoding prompts.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 4: acceptance over N and width.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from jspec.bench.plan import Loaded
from jspec.bench.summary import counted
from jspec.console.log import Log
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.plan.acceptance import Round, rounds_of
from jspec.plan.config import PlanConfig
from jspec.plan.easyspec.acceptance import ROUND, Acceptance, Point
from jspec.plan.measure import requests_at, results

SIZES, WIDTHS = (1, 2, 4, 8), (1, 4, 12)
"""What is measured where nothing else is asked for; what lies between is told from it."""


def grid(settings: PlanConfig, n_layers: int) -> list[tuple[int, int]]:
    """N and width of every drafter that is measured; N beyond the inner layers groups no more."""
    given = settings.model_fields_set
    sizes = settings.sizes if "sizes" in given else SIZES
    widths = settings.widths if "widths" in given else WIDTHS
    return [(n, k) for k, n in itertools.product(widths, sizes) if n <= max(n_layers - 2, 1)]


def tokens_by_depth(rounds: Sequence[Round], depths: Sequence[int]) -> dict[int, float]:
    """Tokens a round of shallower trees, which are what a deep one was before its last levels."""
    return {
        depth: 1 + statistics.fmean(min(len(one.path), depth) for one in rounds)
        for depth in sorted(depths)
    }


def measure(
    loaded: Loaded, label: str, settings: PlanConfig, points: Sequence[tuple[int, int]], log: Log
) -> Acceptance:
    """Decode all prompts with the deepest tree of every N and width, at every temperature.

    Tokens are means over temperatures.
    """
    models = loaded.plan.models
    path, config = models.files[label], models.drafters[label]
    deepest = max(settings.depths)
    found = []
    for n, width in points:
        options = {"size": n, "width": width, "depth": deepest, "calibration": ROUND}
        loaded.drafters[label] = load_drafter(
            config.drafter, path, target=loaded.target, **(config.drafter_options | options)
        )
        tokens, n_rounds = dict.fromkeys(settings.depths, 0.0), 0
        for t, share in zip(settings.temperatures, settings.shares, strict=True):
            what = f"N = {n}, width {width}, T = {t:g}"
            rounds = _rounds(loaded, label, settings.batch_size, t, what, log)
            n_rounds += len(rounds)
            for depth, some in tokens_by_depth(rounds, settings.depths).items():
                tokens[depth] += share * some
        found += [
            Point(n=n, width=width, depth=depth, tokens_per_call=some)
            for depth, some in sorted(tokens.items())
        ]
        log.note(
            f"N = {n}, width {width}: {counted(n_rounds, 'round')}, {tokens[deepest]:.2f} tokens a "
            f"call at depth {deepest}"
        )
    return Acceptance(tuple(found), f"measured here, {counted(len(found), 'point')}")


def _rounds(
    loaded: Loaded, label: str, batch_size: int, temperature: float, what: str, log: Log
) -> list[Round]:
    """Of all prompts."""
    engine = loaded.engine(label, batch_size, trace=True)
    rounds = []
    for _, result in results(engine, requests_at(loaded, temperature), what, log):
        assert result.trace is not None
        rounds += rounds_of(result.trace)
    if not rounds:
        raise UserError(
            f"T = {temperature:g}: all texts ended with their first token, no round was seen; "
            "raise --max-new-tokens, or give other --prompts"
        )
    return rounds
