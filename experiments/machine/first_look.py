"""What a machine does with the decoding loop: the table that defaults and claims stand on.

    python -m experiments.machine.first_look --out runs/look  on a GPU: a 7B-shaped bfloat16 target
    python -m experiments.machine.first_look --out runs/look --tiny  anywhere: does it run?

Random weights: no figure here says anything about acceptance. Every section interleaves its
variants and reports medians of repeated calls. Sections can be run one at a time (`--sections
plain,nodes`): a later run on the same device adds to the record in --out, and r(n) goes on where an
earlier run was cut off.

It writes `look.json`, `look.md` (the tables of docs/accelerator.md) and, with --hlo, the compiled
text of the loops.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax

from experiments.common.shapes import n_parameters, random_model
from experiments.common.tables import markdown
from experiments.machine.sections import PROFILES, SECTIONS, Look
from jspec.console.commands import exit_code, leave
from jspec.provenance import device_record, provenance


def parse_sections(text: str) -> list[str]:
    """Names of sections, in the order in which they run."""
    names = text.split(",")
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}"
        )
    return [name for name in SECTIONS if name in names]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument(
        "--sections",
        type=parse_sections,
        help=f"some of {','.join(SECTIONS)}; all that mean something here if not given",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a check of the script")
    parser.add_argument("--hlo", type=Path, help="folder for compiled text")
    parser.add_argument(
        "--compile-cache", type=Path, help="folder of JAX's compilation cache, for repeated runs"
    )
    arguments = parser.parse_args()
    if arguments.compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(arguments.compile_cache))

    look = start(arguments.out, is_tiny=arguments.tiny, hlo=arguments.hlo)
    wanted = arguments.sections or [
        name for name in SECTIONS if name != "graphs" or jax.default_backend() == "gpu"
    ]
    if "plain" in wanted and "copy" not in wanted and "copy" not in look.record:
        wanted = ["copy", *wanted]
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        look.record[name] = SECTIONS[name](look)
        look.save()
    table = markdown(look.record)
    (arguments.out / "look.md").write_text(table)
    print(table)
    return 0


def start(out: Path, *, is_tiny: bool, hlo: Path | None) -> Look:
    """The target of this machine's profile, and the record of an earlier run if it is the same."""
    kind = "tiny" if is_tiny else "gpu" if jax.default_backend() == "gpu" else "cpu"
    profile = PROFILES[kind]
    same = json.loads(
        json.dumps({"profile": dataclasses.asdict(profile), "device": device_record()})
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "look.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    if any(record.get(key) != value for key, value in same.items()):
        record = {}
    model, params = random_model(profile.target, profile.dtype)
    record |= provenance() | same | {"parameters": n_parameters(params)}
    return Look(profile, model, params, record, out, hlo)


if __name__ == "__main__":
    leave(exit_code(main))
