"""The parts of DiffuSpec's ablation, each a few variants of the drafter, with the paper's rows.

Lengths are those of a demo on a CPU: the paper drafts 10 to 100 tokens, here it is 2 to 8.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), Tables 2 and 5, Fig. 7 (read off the figure).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.diffuspec.variants import Line, Paper, Part, Variant, fixed, variant

LENGTHS = (2, 3, 4, 5, 6, 8)
ADAPTIVE_LENGTHS = {"shortest": 2, "longest": 8, "n_lengths": 4}
ADAPTIVE_SIZES = (2, 4, 6, 8)
PASSES_LENGTH = 8
WEIGHTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NODES = (8, 12, 16)
WIDE = (64, 1024, 0)

ARGMAX: dict[str, Any] = {"weight": 1.0, "beam": 1}
"""The likeliest token of every slot: no search, no proxy."""

CPS: dict[str, Any] = {}
CHOICES = {"argmax": ARGMAX, "CPS": CPS}


# --- parts ---------------------------------------------------------------------------------------


def _sweep(
    option: str, values: Sequence[Any], name: str, paper: dict[Any, Paper], **changes
) -> tuple[Line, ...]:
    return tuple(
        Line(
            label=f"{name} = {value:g}",
            variant=variant(**changes, **{option: value}),
            x=float(value),
            paper=paper.get(value),
        )
        for value in values
    )


def lengths() -> Part:
    lines = [
        Line(label=f"{name}, k = {k}", variant=fixed(k, **choice), x=k)
        for name, choice in reversed(CHOICES.items())
        for k in LENGTHS
    ]
    return Part(
        title="Fixed length",
        lines=tuple(lines),
        baseline=fixed(4),
        note="The paper, tokens and speedup: k = 10: 5.53, 2.74; 20: 6.56, 2.98; 30: 6.49, 2.98; "
        "50: 6.51, 2.91; 100: 6.69, 2.78; adaptive: 6.99, 3.08.",
    )


def passes() -> Part:
    paper = {1: (6.99, 3.08), 2: (6.90, 2.37), 3: (6.92, 1.97), 4: (7.04, 1.71)}
    k = {"shortest": PASSES_LENGTH, "longest": PASSES_LENGTH}
    lines = _sweep("passes", (1, 2, 3, 4), "S", paper, **k)
    return Part(title=f"Passes, k = {PASSES_LENGTH}", lines=lines, baseline=lines[0].variant)


def beam() -> Part:
    paper = {1: (6.67, 2.87), 2: (6.95, 2.98), 3: (6.99, 3.08), 4: (7.00, 2.99), 5: (6.95, 2.98)}
    return Part(title="Beam", lines=_sweep("beam", (1, 2, 3, 4, 5), "B", paper), baseline=variant())


def cap() -> Part:
    paper = {5: (6.73, 2.88), 10: (6.90, 2.91), 15: (6.99, 3.08), 20: (6.96, 2.91)}
    return Part(
        title="Candidates of a slot",
        lines=_sweep("cap", (2, 5, 10, 15, 20), "M_max", paper),
        baseline=variant(),
    )


def mass() -> Part:
    paper = {0.5: (6.73, 2.80), 0.6: (6.77, 2.84), 0.7: (6.93, 2.90), 0.8: (6.99, 3.08)}
    paper |= {0.9: (6.94, 2.93)}
    return Part(
        title="Mass of a slot's candidates",
        lines=_sweep("mass", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95), "mass", paper),
        baseline=variant(),
    )


def weight() -> Part:
    lines = [
        Line(
            label=f"lambda = {value:g}" + ("" if value == 1 else f", {name}"),
            variant=variant(weight=value, static_share=share),
            x=value,
        )
        for share, name in ((0.5, "half text"), (1.0, "table alone"))
        for value in WEIGHTS
        if value < 1 or share == 0.5
    ]
    return Part(
        title="Weight of the model beside the proxy",
        lines=tuple(lines),
        baseline=variant(),
        note="The paper has lambda = 0.5 alone. At lambda = 1 there is no proxy.",
    )


def shape() -> Part:
    shapes: list[tuple[str, dict[str, Any]]] = [("path", {}), ("beams", {"shape": "beams"})]
    shapes += [(f"tree of {n}", {"shape": "tree", "nodes": n}) for n in NODES]
    lines = [
        Line(label=f"{name}, {proxy}", variant=variant(has_proxy=has_proxy, **changes))
        for has_proxy, proxy in ((True, "proxy"), (False, "no proxy"))
        for name, changes in shapes
    ]
    return Part(title="What is verified, k = 4", lines=tuple(lines), baseline=variant())


def prefix() -> Part:
    lines = (
        Line(label="frozen", variant=variant()),
        Line(label="recompute", variant=variant(prefix="recompute")),
    )
    return Part(title="How the text is read", lines=lines, baseline=variant())


def extra() -> Part:
    lines = (
        Line(label="4 masks, 4 slots", variant=variant()),
        Line(label="4 masks, 5 slots", variant=variant(extra_slot=True)),
        Line(label="5 masks, 5 slots", variant=fixed(5)),
    )
    return Part(title="The slot after the last mask", lines=lines, baseline=variant())


def eos() -> Part:
    lines = [
        Line(
            label=f"{rule}, {'mean' if is_mean else 'sum'}",
            variant=variant(eos_rule=rule, length_normalised=is_mean),
        )
        for rule in ("argmax_depth", "forced_literal")
        for is_mean in (True, False)
    ]
    return Part(
        title="Where a path may end, and whether paths compare by mean or by sum",
        lines=tuple(lines),
        baseline=variant(),
    )


def proxy() -> Part:
    lines = (
        Line(label="none", variant=variant(has_proxy=False)),
        Line(label="table alone", variant=variant(static_share=1.0)),
        Line(label="half table, half text", variant=variant()),
        Line(label="text, and the table where it is silent", variant=variant(static_share=0.0)),
        *(
            Line(
                label=f"no table, {share} text, lambda = {weight}",
                variant=variant(has_table=False, static_share=1 - share, weight=weight),
            )
            for share, weight in ((0.5, 0.5), (0.5, 0.7), (0.5, 0.9))
        ),
    )
    return Part(title="Proxy", lines=lines, baseline=variant())


def sampled() -> Part:
    shapes: list[tuple[str, dict[str, Any]]] = [("path", {})]
    shapes += [("tree of 12", {"shape": "tree", "nodes": 12})]
    lines = [
        Line(
            label=f"{name}, wide = {wide or 'all'}",
            variant=variant(temperature=1.0, wide=wide, **changes),
        )
        for name, changes in shapes
        for wide in WIDE
    ]
    return Part(title="Temperature 1", lines=tuple(lines), baseline=variant(temperature=1.0))


PARTS: dict[str, Callable[[], Part]] = {
    "lengths": lengths,
    "passes": passes,
    "beam": beam,
    "cap": cap,
    "shape": shape,
    "prefix": prefix,
    "extra": extra,
    "sampled": sampled,
    "mass": mass,
    "weight": weight,
    "eos": eos,
    "proxy": proxy,
}
"""By name, but for `adaptive`, which stands on `lengths`."""

ADAPTIVE = "adaptive"
NAMES = ("lengths", ADAPTIVE, *(name for name in PARTS if name != "lengths"))


def adaptive(best: int, costs: dict[str, str]) -> Part:
    """Fixed and adaptive lengths, with and without the search: the paper's Table 2.

    Args:
      best: the fixed length.
      costs: of rounds of `ADAPTIVE_SIZES` by choice, for the survival controller.
    """
    controllers = {
        "as published": {},
        "tolerance 0.7, bonus counted": {"tolerance": 0.7, "counts_bonus": True},
        "survival": {"controller": "survival", "smoothing": 0.2},
    }
    paper = {
        ("CPS", True): (6.99, 3.08),
        ("CPS", False): (6.95, 2.98),
        ("argmax", True): (6.43, 2.73),
        ("argmax", False): (6.05, 2.69),
    }
    lines = []
    for name, choice in CHOICES.items():
        still = fixed(best, **choice)
        lines.append(
            Line(label=f"{name}, k = {best}", variant=still, x=best, paper=paper[name, False])
        )
        for controller, changes in controllers.items():
            more = {"costs": costs[name]} if controller == "survival" else {}
            moving = variant(**ADAPTIVE_LENGTHS, **choice, **changes, **more)
            lines.append(
                Line(
                    label=f"{name}, adaptive, {controller}",
                    variant=moving,
                    paper=paper[name, True] if controller == "as published" else None,
                )
            )
    return Part(
        title="Search and adaptive length",
        lines=tuple(lines),
        baseline=fixed(best, **CPS),
        note=f"k = {best} is the fixed length that was fastest with the search. Adaptive drafts "
        f"have {', '.join(map(str, ADAPTIVE_SIZES))} masks, and growth is 2. Cost by lengths: if "
        "each cost what it does alone.",
    )


_TREE: dict[str, Any] = {"shape": "tree", "nodes": 12}

STAGED: dict[str, Variant] = {
    "argmax, k = 4": fixed(4, **ARGMAX),
    "CPS, k = 4": fixed(4),
    "CPS, k = 8": fixed(8),
    "CPS, k = 8, S = 4": fixed(8, passes=4),
    "CPS, k = 4, text read anew": fixed(4, prefix="recompute"),
    "tree of 12, k = 4": fixed(4, **_TREE),
    "CPS, k = 4, T = 1": fixed(4, temperature=1.0),
    "tree of 12, k = 4, T = 1": fixed(4, **_TREE, temperature=1.0),
}
"""Variants whose rounds are taken apart."""
