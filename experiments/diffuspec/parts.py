"""The variants of DiffuSpec's ablation, in parts that are tables, beside the paper's rows.

Lengths are those of a demo on a CPU: the paper drafts 10 to 100 tokens, here it is 2 to 8. What the
paper says is tokens a round, the target's own included by section 6.1's reckoning, and speedup. It
has lambda = 0.5 alone; at lambda = 1 there is no proxy.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), Tables 2 and 5, Fig. 7 (read off the figure).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.ablation import BATCH_SIZE, Part, Variant
from jspec.drafters.diffuspec.loading import NO_NGRAM, DiffuSpecOptions

DRAFTER = "demo/diffusion"
USUAL: dict[str, Any] = {
    "shortest": 4,
    "longest": 4,
    "n_lengths": 1,
    "growth": 2,
    "weight": 0.7,
    "static_share": 0.5,
}
"""What the others differ from in one thing; the rest are the drafter's defaults."""

LENGTHS = (2, 3, 4, 5, 6, 8)
ADAPTIVE_SIZES = (2, 4, 6, 8)
NO_PROXY = {"weight": 1.0, "static_share": 1.0, "ngram": NO_NGRAM}
CHOICES: dict[str, dict[str, Any]] = {"argmax": {**NO_PROXY, "beam": 1}, "CPS": {}}
"""The likeliest token of every slot, without search and proxy; and the paper's search."""


def variant(
    label: str, *, x: float = 0, paper: str = "", temperature: float = 0.0, **changes
) -> Variant:
    """One that differs from the usual in these options; without weight, the proxy has no others."""
    options = USUAL | changes
    if options["weight"] == 1:
        options |= NO_PROXY
    every = dataclasses.asdict(DiffuSpecOptions(**options)).items()
    options = {name: getattr(value, "value", value) for name, value in every}  # of enums
    return Variant(
        label=label,
        drafter="diffuspec",
        path=DRAFTER,
        options=options,
        temperature=temperature,
        # All rows of a batch draft what the longest wants, and are read anew with the oldest.
        batch_size=BATCH_SIZE if options["n_lengths"] == 1 and not options["refresh_every"] else 1,
        x=x,
        paper=paper,
    )


def fixed(k: int, label: str = "", **changes) -> Variant:
    """Drafts of k masks."""
    return variant(label or f"k = {k}", shortest=k, longest=k, x=changes.pop("x", k), **changes)


def choice_of(one: Variant) -> str:
    """Which of `CHOICES` it is, or is like."""
    return "argmax" if one.options["weight"] == 1 else "CPS"


def part(title: str, variants: Sequence[Variant], against: Variant | None = None) -> Part:
    """All beside one of them, the usual variant if not said otherwise."""
    usual = against or variant("")
    one = next(each for each in variants if each == usual)
    compared = (dataclasses.replace(each, against=one) for each in variants)
    return Part(title=title, variants=tuple(compared))


def _sweep(name: str, option: str, paper: Mapping[Any, str], **changes) -> list[Variant]:
    """One option at some values, each with what the paper says of it."""
    return [
        variant(f"{name} = {value:g}", x=value, paper=said, **{**changes, option: value})
        for value, said in paper.items()
    ]


_S = {1: "6.99, 3.08", 2: "6.90, 2.37", 3: "6.92, 1.97", 4: "7.04, 1.71"}
_B = {1: "6.67, 2.87", 2: "6.95, 2.98", 3: "6.99, 3.08", 4: "7.00, 2.99", 5: "6.95, 2.98"}
_CAP = {2: "", 5: "6.73, 2.88", 10: "6.90, 2.91", 15: "6.99, 3.08", 20: "6.96, 2.91"}
_MASS = {0.5: "6.73, 2.80", 0.6: "6.77, 2.84", 0.7: "6.93, 2.90", 0.8: "6.99, 3.08"}
_MASS |= {0.9: "6.94, 2.93", 0.95: ""}
_WEIGHTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TREE: dict[str, Any] = {"shape": "tree", "nodes": 12}
_SHAPES: dict[str, dict[str, Any]] = {"path": {}, "beams": {"shape": "beams"}}
_SHAPES |= {f"tree of {n}": {"shape": "tree", "nodes": n} for n in (8, 12, 16)}
_PASSES = _sweep("S", "passes", _S, shortest=8, longest=8)


def lengths(some: Sequence[int]) -> Part:
    """Fixed lengths, the usual one among them, with the search and without."""
    variants = [
        fixed(k, f"{name}, k = {k}", **choice)
        for name, choice in reversed(CHOICES.items())
        for k in some
    ]
    return part("Fixed length", variants)


def prefixes(k: int) -> Part:
    """Ways to read the text, with k masks."""
    ways: dict[str, dict[str, Any]] = {"frozen": {}}
    ways |= {f"frozen, anew every {n} rounds": {"refresh_every": n} for n in (32, 8)}
    ways["recompute"] = {"prefix": "recompute"}
    variants = [fixed(k, name, **way) for name, way in ways.items()]
    return part("How the text is read", variants, against=fixed(k))


def proxies(k: int) -> Part:
    """No search, and a search of k slots with each proxy and without any."""
    kinds: dict[str, dict[str, Any]] = {
        "no search": CHOICES["argmax"],
        "none": NO_PROXY,
        "table alone": {"static_share": 1.0},
        "half table, half text": {},
        "text, and the table where it is silent": {"static_share": 0.0},
    }
    for weight in (0.5, 0.7, 0.9):
        silent = {"ngram": NO_NGRAM, "weight": weight}
        kinds[f"no table, 0.5 text, lambda = {weight}"] = silent
    variants = [fixed(k, name, **kind) for name, kind in kinds.items()]
    return part("Proxy", variants, against=fixed(k))


PARTS: dict[str, Part] = {
    "lengths": lengths(LENGTHS),
    "passes": part("Passes, k = 8", _PASSES, against=_PASSES[0]),
    "beam": part("Beam", _sweep("B", "beam", _B)),
    "cap": part("Candidates of a slot", _sweep("M_max", "cap", _CAP)),
    "shape": part(
        "What is verified, k = 4",
        [
            variant(f"{name}, {proxy}", **shape, **changes)
            for proxy, changes in (("proxy", {}), ("no proxy", NO_PROXY))
            for name, shape in _SHAPES.items()
        ],
    ),
    "prefix": prefixes(4),
    "extra": part(
        "The slot after the last mask",
        [
            variant("4 masks, 4 slots"),
            variant("4 masks, 5 slots", extra_slot=True),
            fixed(5, "5 masks, 5 slots"),
        ],
    ),
    "sampled": part(
        "Temperature 1",
        [
            variant(f"{name}, wide = {wide or 'all'}", temperature=1.0, wide=wide, **changes)
            for name, changes in (("path", {}), ("tree of 12", _TREE))
            for wide in (64, 1024, 0)
        ],
        against=variant("", temperature=1.0),
    ),
    "mass": part("Mass of a slot's candidates", _sweep("mass", "mass", _MASS)),
    "weight": part(
        "Weight of the model beside the proxy",
        [
            variant(f"lambda = {weight:g}, {name}", weight=weight, static_share=share, x=weight)
            for share, name in ((0.5, "half text"), (1.0, "table alone"))
            for weight in _WEIGHTS
            if weight < 1 or share == 0.5
        ],
    ),
    "eos": part(
        "Where a path may end, and whether paths compare by mean or by sum",
        [
            variant(
                f"{rule}, {'mean' if is_mean else 'sum'}", eos_rule=rule, length_normalised=is_mean
            )
            for rule in ("argmax_depth", "forced_literal")
            for is_mean in (True, False)
        ],
    ),
    "proxy": proxies(4),
}
"""All but `adaptive`, which stands on `lengths`."""


def adaptive(
    best: int, costs: Mapping[str, str], sizes: Sequence[int] = ADAPTIVE_SIZES, growth: int = 2
) -> Part:
    """Fixed and adaptive lengths, with and without the search: the paper's Table 2.

    Args:
      best: the fixed length.
      costs: of rounds of these sizes by choice, for the survival controller.
      sizes: lengths of drafts, evenly spread.
      growth: masks that are added at once.
    """
    lengths = {"shortest": sizes[0], "longest": sizes[-1], "n_lengths": len(sizes)}
    lengths["growth"] = growth
    paper = {"CPS": ("6.95, 2.98", "6.99, 3.08"), "argmax": ("6.05, 2.69", "6.43, 2.73")}
    variants = []
    for name, choice in CHOICES.items():
        controllers: dict[str, dict[str, Any]] = {
            "as published": {"paper": paper[name][1]},
            "tolerance 0.7, bonus counted": {"tolerance": 0.7, "counts_bonus": True},
            "survival": {"controller": "survival", "smoothing": 0.2, "costs": costs[name]},
        }
        variants.append(fixed(best, f"{name}, k = {best}", paper=paper[name][0], **choice))
        variants += [
            variant(f"{name}, adaptive, {controller}", **lengths, **choice, **changes)
            for controller, changes in controllers.items()
        ]
    return part(
        "Search and adaptive length",
        variants,
        against=fixed(best),
    )


STAGED = (
    fixed(4, "argmax, k = 4", **CHOICES["argmax"]),
    fixed(4, "CPS, k = 4"),
    fixed(8, "CPS, k = 8"),
    fixed(8, "CPS, k = 8, S = 4", passes=4),
    fixed(4, "CPS, k = 4, text read anew", prefix="recompute"),
    fixed(4, "tree of 12, k = 4", **_TREE),
    fixed(4, "CPS, k = 4, T = 1", temperature=1.0),
    fixed(4, "tree of 12, k = 4, T = 1", temperature=1.0, **_TREE),
)
"""Variants whose rounds are taken apart."""
