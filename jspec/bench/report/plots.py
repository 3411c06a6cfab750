"""Which picture shows what: rows of a summary turned into bars, lines and points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from jspec.bench.report.bars import Bar, Part, bars, stacks
from jspec.bench.report.colours import PLAIN, Mark
from jspec.bench.report.curves import Curve, Dot, Point, curves, scatter
from jspec.bench.report.markup import element, text
from jspec.bench.summary import Row, Summary
from jspec.bench.terms import Terms, predicted_speedup

STRENGTHS = {"propose": 1.0, "verify": 0.6, "commit": 0.28}
LIKELY = "Whiskers: 95 % intervals."

Looks = Mapping[str, Mark]


def plots(summary: Summary, looks: Looks) -> str:
    """All pictures that the rows have numbers for, with one key of colours before them."""
    rows = summary.rows
    temperatures = sorted({r.temperature for r in rows})
    smallest = min((r.batch_size for r in rows), default=0)
    parts = []
    for temperature in temperatures:
        here = [r for r in rows if r.temperature == temperature]
        first = [r for r in here if r.batch_size == smallest]
        where = f"T = {temperature:g}, batch {smallest}"
        figures = [
            by_category(first, looks, where),
            tokens_per_call(first, looks, where),
            acceptance(first, looks, where, is_conditional=True),
            acceptance(first, looks, where, is_conditional=False),
            time_split(first, looks, where),
            batch_sweep(here, looks, f"T = {temperature:g}"),
            context_cost(first, looks, where),
            context_speedup(first, looks, where),
        ]
        title = element("h3", f"T = {temperature:g}")
        if any(figures):
            parts.append(title + element("div", "".join(figures), class_="charts"))
    both = predicted_or_measured(rows, looks)
    if both:
        parts.append(element("h3", "All together") + element("div", both, class_="charts"))
    return colour_key(looks) + "".join(parts) if parts else ""


def colour_key(looks: Looks) -> str:
    """The contestants' colours."""
    names = (
        element("span", text(name), class_="name", style=f"--colour:{mark.colour}")
        for name, mark in looks.items()
    )
    return element("p", " ".join(names), class_="key")


def by_category(rows: Sequence[Row], looks: Looks, where: str) -> str:
    """Speedup of whole calls, a group of bars for each category."""
    categories = dict.fromkeys(c for r in rows if not r.is_peer for c in r.by_category)
    groups = []
    for category in categories:
        found = []
        for row in rows:
            value = row.by_category.get(category)
            if value and not row.is_peer:
                spread = (value.low, value.high) if value.n > 1 else None
                colour = looks[row.contestant].colour
                bar = Bar(name=row.contestant, value=value.median, colour=colour, spread=spread)
                found.append(bar)
        groups.append((category, found))
    return bars(
        groups,
        title=f"Speedup by category, {where}",
        unit="times plain decoding, whole calls",
        caption=f"Dashed: as fast as plain. {LIKELY}",
        mark_at=1,
    )


def tokens_per_call(rows: Sequence[Row], looks: Looks, where: str) -> str:
    """tau of every contestant."""
    groups = [
        (r.contestant, [Bar(name=r.contestant, value=r.tau, colour=looks[r.contestant].colour)])
        for r in rows
        if r.tau and r.contestant != PLAIN
    ]
    return bars(
        groups,
        title=f"Tokens per call of the target, {where}",
        unit="tokens, the target's own included",
        caption="vLLM: mean acceptance length. Dashed: plain decoding.",
        mark_at=1,
    )


def acceptance(rows: Sequence[Row], looks: Looks, where: str, *, is_conditional: bool) -> str:
    """Shares kept at each depth, of the rounds that kept the one before or of all."""
    found = []
    for row in rows:
        if row.acceptance:
            known = row.acceptance
            shares = known.conditional if is_conditional else known.unconditional
            points = [Point(x=depth, y=share) for depth, share in enumerate(shares, 1)]
            found.append(Curve(name=row.contestant, points=points, mark=looks[row.contestant]))
    of = "of rounds that kept the depth before" if is_conditional else "of all rounds"
    theirs = "" if is_conditional else "vLLM: per-position acceptance rate."
    return curves(
        found,
        title=f"Acceptance by depth, {of}, {where}",
        units=("depth in the draft", "share kept"),
        caption=theirs,
        is_share=True,
    )


def time_split(rows: Sequence[Row], looks: Looks, where: str) -> str:
    """Propose, verify, commit."""
    found = []
    for row in rows:
        if row.split:
            times = (row.split.propose_ms, row.split.verify_ms, row.split.commit_ms)
            pieces = [
                Part(name=name, value=ms, strength=strength)
                for (name, strength), ms in zip(STRENGTHS.items(), times, strict=True)
            ]
            found.append((row.contestant, looks[row.contestant].colour, pieces))
    return stacks(
        found,
        title=f"Where a round's time goes, {where}",
        unit="ms a round",
        caption="Stages dispatched apart, which costs more than a whole round.",
    )


def batch_sweep(rows: Iterable[Row], looks: Looks, where: str) -> str:
    """Speedup over batch size, drafters and peers."""
    points: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda r: r.batch_size):
        if row.speedup:
            spread = (row.speedup.low, row.speedup.high) if row.speedup.n > 1 else None
            point = Point(x=row.batch_size, y=row.speedup.median, spread=spread)
            points.setdefault(row.contestant, []).append(point)
    return curves(
        [Curve(name=name, points=found, mark=looks[name]) for name, found in points.items()],
        title=f"Speedup by batch size, {where}",
        units=("texts decoded together", "times plain decoding"),
        caption=f"Below the dashed line speculation loses. {LIKELY}",
        mark_at=1,
        is_log=True,
    )


def context_cost(rows: Iterable[Row], looks: Looks, where: str) -> str:
    """What a round costs over the length of the text before it."""
    return by_context(
        rows,
        looks,
        lambda row, terms: terms.total,
        title=f"Cost of a round by length of text, {where}",
        unit="plain rounds",
        caption="r(n) + c_d + overhead. Dashed: a plain round.",
    )


def context_speedup(rows: Iterable[Row], looks: Looks, where: str) -> str:
    """The speedup that those costs allow at the tau of the run."""
    return by_context(
        rows,
        looks,
        lambda row, terms: predicted_speedup(row.tau, terms),
        title=f"Predicted speedup by length of text, {where}",
        unit="times plain decoding",
        caption="tau of this run over a round's cost; acceptance taken as equal at all lengths.",
    )


def by_context(
    rows: Iterable[Row],
    looks: Looks,
    height: Callable[[Row, Terms], float],
    *,
    title: str,
    unit: str,
    caption: str,
) -> str:
    """Something that follows from a round's terms, at each length of text that was measured."""
    found = []
    for row in rows:
        known = sorted(row.terms_by_context.items())
        points = [Point(x=c, y=height(row, terms)) for c, terms in known if terms.total > 0]
        if points:
            found.append(Curve(name=row.contestant, points=points, mark=looks[row.contestant]))
    return curves(
        found,
        title=title,
        units=("tokens before the round", unit),
        caption=caption,
        mark_at=1,
        is_log=True,
    )


def predicted_or_measured(rows: Iterable[Row], looks: Looks) -> str:
    """Every row that has both numbers; hollow markers where sampled."""
    dots = [
        Dot(
            name=f"{r.contestant}, T = {r.temperature:g}, batch {r.batch_size}",
            x=r.predicted,
            y=r.decode_speedup.median,
            mark=looks[r.contestant],
            is_hollow=r.temperature > 0,
        )
        for r in rows
        if r.predicted and r.decode_speedup
    ]
    return scatter(
        dots,
        title="Predicted and measured speedup of decoding",
        units=("predicted", "measured"),
        caption="On the line they agree; the band is a tenth to either side. Hollow: T above 0.",
    )
