"""One round of Falcon over one plain step, at a target's shape, beside the floor of its weights.

    python -m experiments.falcon.round --out runs/falcon_round  on a GPU: Vicuna 7B's shape
    python -m experiments.falcon.round --out runs/falcon_round --tiny  anywhere: does it run?

Random weights: no figure here says anything about acceptance. Target and head are timed in turn, in
the loop on the device; the stages of a round are then dispatched apart. The floor is what a round
would cost if it took as long as reading weights does: the target's once, and the head's and the
target's head's in every pass.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax

from experiments.common.shapes import TARGETS, n_parameters
from experiments.common.tables import table
from experiments.common.timed_rounds import add_common_flags, n_read, random_target, write_record
from jspec.bench.costs import Costs, room_needed, rounds_for
from jspec.bench.stages import split
from jspec.bench.summary import PLAIN
from jspec.checkpoints.target import Target
from jspec.console.commands import exit_code, leave
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import find
from jspec.drafters.none import NoDrafter
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.models import sar_head
from jspec.models.modules import random_like
from jspec.models.sar_head import SarConfig
from jspec.provenance import device_record, provenance

FALCON = "falcon"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    add = parser.add_argument
    add("--shape", choices=TARGETS, default="7b")
    add("--tree", default="kmask2_8layer_tree", help="a released tree, chain-N, or a file")
    add("--context", type=int, default=512, help="tokens of text before the rounds")
    return parser


def load_both(arguments: argparse.Namespace) -> tuple[Target, LoadedDrafter]:
    """A target of the shape and a head for it, both with random weights."""
    target = random_target(arguments.shape, arguments.dtype)
    model = target.model
    decoder = dataclasses.replace(model.config, n_layers=1, windows=())
    head = sar_head.build(SarConfig(decoder=decoder, block_size=2))
    make = jax.jit(
        lambda key: random_like(
            sar_head.abstract_params(head, arguments.dtype), key=key, scale=0.02
        )
    )
    drafter = Falcon(model=head, target=model, tree=find(arguments.tree))
    weights = {"head": make(jax.random.key(1)), "target": target.params}
    return target, LoadedDrafter(name=FALCON, drafter=drafter, params=weights)


def floor(target: Target, drafter: LoadedDrafter) -> float:
    """Weights that a round reads, in those of a plain step; embeddings are looked up, not read."""
    config = target.model.config
    output = config.vocab_size * config.width
    plain = n_read(target.params, config)
    assert isinstance(drafter.drafter, Falcon)
    n_passes = len(drafter.drafter.plan.passes)
    return 1 + n_passes * (n_parameters(drafter.params["head"]) + output) / plain


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a run."""
    target, loaded = load_both(arguments)
    assert isinstance(loaded.drafter, Falcon)
    depth = loaded.drafter.sizes[0].max_depth
    capacity = room_needed(arguments.context, depth)
    plain = LoadedDrafter(name="none", drafter=NoDrafter(), params=())
    engines = {
        PLAIN: Engine(target, plain, batch_size=1, max_length=capacity),
        FALCON: Engine(target, loaded, batch_size=1, max_length=capacity),
    }
    tokens = tuple(i % target.vocab_size for i in range(arguments.context))
    request = Request(tokens=tokens, max_new_tokens=capacity - arguments.context)
    costs = Costs(engines, {0.0: [request]}, capacity, rounds_for(0.01)).measure()
    one = costs["contestants"][FALCON]["temperature"]["0.0"]
    plain_s = costs["plain_round_s"]
    stages = split(engines[FALCON], [request])
    return {
        **provenance(),
        "device": device_record(),
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "tree": arguments.tree,
        "nodes": one["n_nodes"],
        "passes": len(loaded.drafter.plan.passes),
        "context": arguments.context,
        "plain_ms": 1e3 * plain_s,
        "round_over_plain": one["round_s"] / plain_s,
        "floor": floor(target, loaded),
        "verify_over_plain": costs["forwards"][str(one["n_nodes"])] / plain_s,
        "tree_passes_over_plain": one["draft_s"] / plain_s,
        "stages_apart_ms": {
            name: 1e3 * stages[f"{name}_s"] / stages["rounds"]
            for name in ("propose", "verify", "commit")
        },
    }


def main() -> int:
    arguments = make_parser().parse_args()
    if arguments.tiny:
        arguments.shape, arguments.dtype, arguments.context = "tiny", "float32", 32
    record = measure(arguments)
    write_record(arguments.out, record)
    names = ("round_over_plain", "floor", "verify_over_plain", "tree_passes_over_plain", "plain_ms")
    head = ("tree", "nodes", "passes", *names)
    row = (record["tree"], str(record["nodes"]), str(record["passes"]))
    text = table(head, [(*row, *(f"{record[name]:.2f}" for name in names))])
    apart = ", ".join(f"{name} {ms:.2f}" for name, ms in record["stages_apart_ms"].items())
    print(f"{text}\n\nstages dispatched apart, ms: {apart} (commit has the head's first pass)")
    return 0


if __name__ == "__main__":
    leave(exit_code(main))
