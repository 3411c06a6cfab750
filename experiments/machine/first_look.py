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
from collections.abc import Callable
from typing import Any

import jax

from experiments.common.tables import make_tables, parser_of, table
from experiments.machine import sections
from experiments.machine.profiles import PROFILES, Profile
from experiments.machine.sections import Rows
from jspec.console.flags import Parser
from jspec.provenance import device_record, provenance

SECTIONS: dict[str, tuple[str, Callable[[Profile], Rows]]] = {
    "nodes": ("r(n): a pass of the target over n nodes over a pass over one", sections.nodes),
    "falcon": ("A round of Falcon, in plain rounds", sections.falcon),
    "easyspec": ("Passes of EasySpec in groups, over an exact one", sections.easyspec),
    "diffuspec": ("Parts of a round of DiffuSpec, in plain rounds", sections.diffuspec),
}
"""The most important first."""


def make_parser() -> Parser:
    """Which sections are wanted, and of which size."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default: all)")
    add("--profile", choices=PROFILES, help="shapes and sizes; by default the backend's")
    return parser


def look_at(arguments: argparse.Namespace) -> str:
    """Measure the sections that are missing, and write what there is."""
    name = arguments.profile or ("gpu" if jax.default_backend() == "gpu" else "cpu")
    profile, device = PROFILES[name], device_record()
    record: dict[str, Any] = {"profile": dataclasses.asdict(profile), "device": device}
    record = json.loads(json.dumps(record))
    path = arguments.out / "look.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    if all(earlier.get(key) == value for key, value in record.items()):
        record = earlier
    for section in arguments.sections:
        if section not in record:
            print(f"{section} ...", file=sys.stderr, flush=True)
            record[section] = SECTIONS[section][1](profile)
            path.write_text(json.dumps(record | provenance(), indent=1) + "\n")
    caption = f"{device['platform']} ({device['kind']}), profile {name}, {profile.dtype}"
    found = {
        title: record[section] for section, (title, _) in SECTIONS.items() if section in record
    }
    tables = [f"**{title}**\n\n{table(rows)}" for title, rows in found.items()]
    return "\n\n".join([f"{caption}.", *tables])


if __name__ == "__main__":
    make_tables(make_parser(), look_at)
