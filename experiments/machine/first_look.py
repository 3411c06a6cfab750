"""What a machine does with the decoding loop: the tables that defaults and claims stand on.

    python -m experiments.machine.first_look --out runs/look
    python -m experiments.machine.first_look --out runs/look --profile tiny  anywhere: does it run?

Random weights: no figure here says anything about acceptance. Every section lets its variants take
turns and reports medians. A section that was measured on the same device with the same profile is
not measured again. Writes look.json and table.md, the tables of docs/accelerator.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.common.tables import make_tables, parser_of, table
from experiments.machine import kernels, sections
from experiments.machine.profiles import PROFILES, Profile
from experiments.machine.sections import Rows
from jspec.console.flags import Parser
from jspec.console.memory import device_memory
from jspec.errors import UserError
from jspec.provenance import device_record, provenance

SECTIONS: dict[str, tuple[str, Callable[[Profile], Rows]]] = {
    "nodes": ("r(n): a pass of the target over n nodes over a pass over one", sections.nodes),
    "products": ("Rows times an MLP's weights: lone rows, and int8", kernels.products),
    "attention": ("Attention over a cache, by what reads it", kernels.attention),
    "filters": ("The law at a vocabulary", kernels.filters),
    "launches": ("Kernels of a round of five nodes", kernels.launches),
    "falcon": ("A round of Falcon, in plain rounds", sections.falcon),
    "easyspec_round": ("A round of EasySpec, in plain rounds", sections.easyspec_round),
    "easyspec": ("Passes of EasySpec in groups, over an exact one", sections.easyspec),
    "diffuspec": ("Parts of a round of DiffuSpec, in plain rounds", sections.diffuspec),
}
"""The most important first."""

LARGE = 40e9
"""Bytes of an accelerator that the shapes of 7B and 8B models are measured on."""


def make_parser() -> Parser:
    """Which sections are wanted, and of which size."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default: all)")
    add("--profile", choices=PROFILES, help="shapes and sizes; by default the device's")
    add("--minutes", type=float, default=12, help="start no section after them (default: 12)")
    return parser


def look_at(arguments: argparse.Namespace) -> str:
    """Measure the sections that are missing, and write what there is."""
    start = time.monotonic()
    name = arguments.profile or usual_profile()
    profile, device = PROFILES[name], device_record()
    record: dict[str, Any] = {"profile": dataclasses.asdict(profile), "device": device}
    record = json.loads(json.dumps(record))
    path = arguments.out / "look.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    if all(earlier.get(key) == value for key, value in record.items()):
        record = earlier
    left = {}
    for section in arguments.sections:
        if section in record:
            continue
        if time.monotonic() - start > 60 * arguments.minutes:
            left[section] = "no time was left"
            continue
        print(f"{section} ...", file=sys.stderr, flush=True)
        try:
            record[section] = SECTIONS[section][1](profile)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # others may well work
            left[section] = str(error).partition("\n")[0]
            continue
        path.write_text(json.dumps(record | provenance(), indent=1) + "\n")
    caption = f"{device['platform']} ({device['kind']}), profile {name}, {profile.dtype}"
    found = {
        title: record[section] for section, (title, _) in SECTIONS.items() if section in record
    }
    tables = [f"**{title}**\n\n{table(rows)}" for title, rows in found.items()]
    tables += [f"Not measured: {section} ({why})." for section, why in left.items()]
    return "\n\n".join([f"{caption}.", *tables])


def usual_profile() -> str:
    """The profile of the device that JAX has, by its memory."""
    if jax.default_backend() == "cpu":
        return "cpu"
    return "gpu" if (device_memory() or LARGE) >= LARGE else "small"


if __name__ == "__main__":
    make_tables(make_parser(), look_at)
