"""Collectives of EasySpec's plans on the demo pair, counted in the text of compiled programs.

    python -m experiments.easyspec.collectives --out runs/easyspec_collectives

Eight simulated devices. By plan: an exact pass of the drafter, a pass in groups, and a whole round
by its stages: drafting (a pass in groups for every level but the first), the target's forward, and
the exact pass that calibrates. Nothing is run. Writes collectives.json and collectives.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jspec
from experiments.common.tables import table
from jspec.aot.hlo import Instruction, collective_instructions, read
from jspec.checkpoints.target import Target
from jspec.console.commands import exit_code
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.infer.executables import Executables
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Rule
from jspec.models.blocks import causal_block
from jspec.provenance import provenance
from jspec.sharding import make_mesh
from jspec.testing.compile_options import light

RECORD, TABLE = "collectives.json", "collectives.md"
DEVICES = 8
ALONG_TENSOR = (1, 8)
MESHES = {Parallelism.A: (8, 1), Parallelism.A_PLUS: (8, 1), Parallelism.B_TENSOR: (2, 4)}
"""Devices along `layer` and `tensor`, of plans that want some along `layer`."""

STAGES = ("draft", "verify", "commit")
"""Named scopes of a round; `commit` has the calibration."""

PROMPT, CAPACITY = 32, 128


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the record")
    add("--target", default="demo/target", metavar="DIR")
    add("--drafter", default="demo/draft-deep", metavar="DIR")
    add("--size", type=int, default=4, metavar="N", help="layers a group at most")
    add("--depth", type=int, default=5)
    add("--width", type=int, default=12)
    add("--plans", nargs="+", default=[plan.value for plan in Parallelism], metavar="PLAN")
    add("--without-round", action="store_true", help="passes alone, which compile much faster")
    return parser


def counted(instructions: Iterable[Instruction]) -> Counter[str]:
    return Counter(str(each.kind) for each in instructions)


def of_pass(loaded: LoadedDrafter, *, is_exact: bool) -> Counter[str]:
    """Of one compiled pass over a level of a tree, without the sum that the embedding needs."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec)
    decoder, width = drafter.decoder, drafter.grower.width
    tokens, zero = jnp.zeros((1, width), jnp.int32), jnp.zeros((1,), jnp.int32)
    cache = jax.eval_shape(lambda: decoder.empty_cache(1, CAPACITY, jnp.float32))

    def one(params, cache):
        block = causal_block(zero, width)
        return decoder.forward(params, cache, tokens, block, is_exact=is_exact)

    compiled = jax.jit(one).lower(loaded.params, cache).compile(compiler_options=light())
    found = collective_instructions(read(compiled.as_text() or ""))
    return counted(found) - Counter({"all-reduce": 1})


def of_round(target: Target, loaded: LoadedDrafter) -> dict[str, Counter[str]]:
    """Of one compiled greedy round at batch size 1, by stage."""
    programs = Executables(
        target=target,
        drafter=loaded,
        rule=Rule.WALK,
        trace=False,
        loop="static",
        batch_size=1,
        capacity=CAPACITY,
        rounds=1,
    )
    request = Request(tokens=(0,) * PROMPT, max_new_tokens=CAPACITY - PROMPT)
    tokens, length = jnp.zeros((1, PROMPT), jnp.int32), jnp.full((1,), PROMPT, jnp.int32)
    sampling = sampling_of([request], max_length=CAPACITY, max_stop_ids=1)
    shapes = programs.state_shapes(tokens, length, sampling)
    compiled = programs.lower_chunk(shapes, Mode.GREEDY).compile(compiler_options=light())
    found = collective_instructions(read(compiled.as_text() or ""))
    return {
        stage: counted(each for each in found if f"/{stage}/" in each.op_name) for stage in STAGES
    } | {"elsewhere": counted(e for e in found if not any(f"/{s}/" in e.op_name for s in STAGES))}


def expected(plan: Parallelism, loaded: LoadedDrafter) -> Counter[str]:
    """What the plan's definition says of a pass in groups."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec)
    groups, layers = drafter.decoder.groups, drafter.decoder.model.config.n_layers
    several = sum(len(group) > 1 for group in groups)
    return {
        Parallelism.A: Counter({"all-gather": several}),
        Parallelism.A_PLUS: Counter({"all-gather": several, "all-reduce": layers}),
        Parallelism.B: Counter({"all-reduce": len(groups) + layers}),
        Parallelism.B_MINUS: Counter({"all-reduce": len(groups)}),
        Parallelism.B_TENSOR: Counter({"all-reduce": len(groups) + layers}),
        Parallelism.C: Counter(),
    }[plan]


def measure(arguments: argparse.Namespace, plan: Parallelism) -> dict[str, Any]:
    """The record of a plan."""
    sizes = MESHES.get(plan, ALONG_TENSOR)
    mesh = make_mesh(layer=sizes[0], tensor=sizes[1])
    target = jspec.load_target(arguments.target, mesh=mesh)
    options = {"size": arguments.size, "depth": arguments.depth, "width": arguments.width}
    path = arguments.drafter
    loaded = jspec.load_drafter("easyspec", path, target=target, plan=plan.value, **options)
    with jax.set_mesh(target.mesh):
        exact, grouped = (of_pass(loaded, is_exact=is_exact) for is_exact in (True, False))
    stages = {} if arguments.without_round else of_round(target, loaded)
    return {
        "mesh": mesh.shape,
        "exact": exact,
        "grouped": grouped,
        "expected": expected(plan, loaded),
        "round": stages,
    }


def shown(found: Counter[str]) -> str:
    short = {"all-reduce": "AR", "all-gather": "AG"}
    text = (f"{n} {short.get(kind, kind)}" for kind, n in sorted(found.items(), reverse=True))
    return " + ".join(text) or "0"


def text_of(record: dict[str, Any]) -> str:
    """A Markdown table: all-reduces (AR) and all-gathers (AG)."""
    names = ["exact", "grouped", "expected"]
    stages = list(next(iter(record["plans"].values()))["round"])
    rows = [
        (
            plan,
            *(shown(found[name]) for name in names),
            *(shown(found["round"][stage]) for stage in stages),
        )
        for plan, found in record["plans"].items()
    ]
    return table(("plan", *names, *stages), rows)


def main() -> int:
    arguments = make_parser().parse_args()

    def command() -> int:
        jax.config.update("jax_num_cpu_devices", DEVICES)
        arguments.out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**provenance(), "devices": DEVICES, "plans": {}}
        for plan in map(Parallelism, arguments.plans):
            print(f"plan {plan.value}", file=sys.stderr)
            record["plans"][plan.value] = measure(arguments, plan)
            path = arguments.out / RECORD
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        text = text_of(record)
        (arguments.out / TABLE).write_text(text + "\n", encoding="utf-8")
        print(text)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
