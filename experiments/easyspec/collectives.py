"""Collectives of EasySpec's plans on the demo pair, counted in the text of compiled programs.

    python -m experiments.easyspec.collectives --out runs/easyspec_collectives

Eight simulated devices, N = 4, D = 5, k = 12. By plan: an exact pass of the drafter, a pass in
groups, what the plan's definition says of that, and a whole round by its stages: drafting (a pass
in groups for every level but the first), the target's forward, and the exact pass that calibrates
(`commit`). Nothing is run. Writes table.md: all-reduces (AR) and all-gathers (AG).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable

import jax
import jax.numpy as jnp

import jspec
from experiments.common.tables import make_tables, parser_of, table
from jspec.aot.hlo import Instruction, collective_instructions, read
from jspec.checkpoints.target import Target
from jspec.console.flags import Parser
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.infer.executables import Executables
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Rule
from jspec.models.blocks import causal_block
from jspec.sharding import make_mesh
from jspec.testing.compile_options import light

DEVICES = 8
MESHES = {Parallelism.A: (8, 1), Parallelism.A_PLUS: (8, 1), Parallelism.B_TENSOR: (2, 4)}
"""Devices along `layer` and `tensor`, of plans that want some along `layer`."""

OPTIONS = {"size": 4, "depth": 5, "width": 12}
STAGES = ("draft", "verify", "commit")
"""Named scopes of a round."""

PROMPT, CAPACITY = 32, 128
SHORT = {"all-reduce": "AR", "all-gather": "AG"}


def counted(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(SHORT.get(str(each.kind), str(each.kind)) for each in instructions)


def collectives_of(lowered: jax.stages.Lowered) -> list[Instruction]:
    """Those of a program, compiled."""
    compiled = lowered.compile(compiler_options=light())
    return collective_instructions(read(compiled.as_text() or ""))


def of_pass(loaded: LoadedDrafter, *, is_exact: bool) -> Counter[str]:
    """Of one pass over a level of a tree, without the sum that the embedding needs."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec)
    decoder, width = drafter.decoder, drafter.grower.width
    tokens, zero = jnp.zeros((1, width), jnp.int32), jnp.zeros((1,), jnp.int32)
    cache = jax.eval_shape(lambda: decoder.empty_cache(1, CAPACITY, jnp.float32))

    def one(params, cache):
        block = causal_block(zero, width)
        return decoder.forward(params, cache, tokens, block, is_exact=is_exact)

    return counted(collectives_of(jax.jit(one).lower(loaded.params, cache))) - Counter(AR=1)


def of_round(target: Target, loaded: LoadedDrafter) -> dict[str, Counter[str]]:
    """Of one greedy round at batch size 1, by stage."""
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
    found = collectives_of(programs.lower_chunk(shapes, Mode.GREEDY))
    return {
        stage: counted(each for each in found if f"/{stage}/" in each.op_name) for stage in STAGES
    }


def expected(plan: Parallelism, loaded: LoadedDrafter) -> Counter[str]:
    """What the plan's definition says of a pass in groups."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec)
    groups, layers = drafter.decoder.groups, drafter.decoder.model.config.n_layers
    several = sum(len(group) > 1 for group in groups)
    return {
        Parallelism.A: Counter(AG=several),
        Parallelism.A_PLUS: Counter(AG=several, AR=layers),
        Parallelism.B: Counter(AR=len(groups) + layers),
        Parallelism.B_MINUS: Counter(AR=len(groups)),
        Parallelism.B_TENSOR: Counter(AR=len(groups) + layers),
        Parallelism.C: Counter(),
    }[plan]


def measure(plan: Parallelism, *, has_round: bool) -> dict[str, object]:
    """A plan's row of the table."""
    layer, tensor = MESHES.get(plan, (1, DEVICES))
    target = jspec.load_target("demo/target", mesh=make_mesh(layer=layer, tensor=tensor))
    path = "demo/draft-deep"
    loaded = jspec.load_drafter("easyspec", path, target=target, plan=plan.value, **OPTIONS)
    with jax.set_mesh(target.mesh):
        exact, grouped = (of_pass(loaded, is_exact=is_exact) for is_exact in (True, False))
    found = {"exact pass": exact, "pass in groups": grouped, "expected": expected(plan, loaded)}
    found |= of_round(target, loaded) if has_round else {}
    return {"plan": plan.value, **{name: _text(counts) for name, counts in found.items()}}


def _text(counts: Counter[str]) -> str:
    return " + ".join(f"{n} {kind}" for kind, n in sorted(counts.items(), reverse=True)) or "0"


def make_parser() -> Parser:
    """Which plans, and how much of them."""
    parser = parser_of(__doc__)
    add, plans = parser.add_argument, [plan.value for plan in Parallelism]
    add("--plans", nargs="+", choices=plans, default=plans, metavar="PLAN")
    add("--without-round", action="store_true", help="passes alone, which compile much faster")
    return parser


def measure_all(arguments: argparse.Namespace) -> str:
    """The table."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = []
    for plan in map(Parallelism, arguments.plans):
        print(f"plan {plan.value}", file=sys.stderr)
        rows.append(measure(plan, has_round=not arguments.without_round))
    return table(rows)


if __name__ == "__main__":
    make_tables(make_parser(), measure_all)
