"""What the planner's probe of this device predicts, beside passes that are timed.

    python -m experiments.easyspec.probe --out runs/easyspec_probe  the demo's models
    python -m experiments.easyspec.probe --out runs/easyspec_probe --tiny  does it run?

Random weights, one device, exact passes, each in a loop of its own. Every time the device is
probed anew, and then passes are timed.
"""

from __future__ import annotations

import argparse
import functools
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.shapes import SHAPES, TARGETS, random_model
from experiments.common.tables import table
from experiments.common.timed_rounds import add_common_flags, write_record
from jspec.bench.records import device_record, provenance
from jspec.bench.timing import interleaved
from jspec.console.exit_codes import exit_code, leave
from jspec.models.blocks import causal_block
from jspec.models.layer_parallel import Parallelism
from jspec.models.model import Model, empty_cache, forward
from jspec.plan.easyspec.hardware import Hardware, plain
from jspec.plan.easyspec.passes import Mesh, Work, exact_s
from jspec.plan.easyspec.probe import measure
from jspec.plan.easyspec.shapes import BYTES, ModelShape

PASSES = 32
"""Of a loop."""

NEVER = 1e30
"""No logit is as large."""

Times = dict[int, float]
"""Milliseconds by rows."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    add = parser.add_argument
    add("--drafter", choices=TARGETS, default="demo-draft-deep", help="shape")
    add("--target", choices=TARGETS, default="demo-target", help="shape")
    add("--rows", type=int, nargs="+", default=[1, 4, 12, 61], help="new rows of a pass")
    add("--context", type=int, default=256, help="tokens of text")
    add("--calls", type=int, default=11, help="times that each loop is run")
    add("--times", type=int, default=5, help="comparisons")
    return parser


def shape_of(name: str, dtype: str) -> ModelShape:
    return ModelShape(name=name, config=SHAPES[name], weight_bytes=BYTES[dtype])


def predicted(shape: ModelShape, hardware: Hardware, arguments: argparse.Namespace) -> Times:
    works = {n: Work(tokens=n, context=arguments.context) for n in arguments.rows}
    return {n: 1e3 * exact_s(shape, hardware, works[n], Parallelism.C, Mesh()) for n in works}


@functools.partial(jax.jit, static_argnames=("model", "rows", "context"))
def passes(params, model: Model, cache, *, rows: int, context: int):
    """Passes one after another. No token is chosen of their logits: that is not predicted."""

    def step(_, carry):
        cache, tokens = carry
        block = causal_block(jnp.full((1,), context, jnp.int32), rows)
        output, cache = forward(params, model, cache, tokens, block)
        return cache, jnp.where(jnp.max(output.logits, axis=-1) > NEVER, 1, tokens)

    return lax.fori_loop(0, PASSES, step, (cache, jnp.zeros((1, rows), jnp.int32)))[1]


def timed(shape: ModelShape, arguments: argparse.Namespace) -> Times:
    model, params = random_model(shape.name, arguments.dtype)
    found = {}
    for n in arguments.rows:
        cache = empty_cache(model.config, 1, arguments.context + n, jnp.dtype(arguments.dtype))
        call = functools.partial(passes, params, model, cache, rows=n, context=arguments.context)
        seconds = interleaved({n: call}, rounds=arguments.calls)[n]["median"]
        found[n] = 1e3 * seconds / PASSES
    return found


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """A probe, and what was timed after it."""
    drafter, target = (shape_of(n, arguments.dtype) for n in (arguments.drafter, arguments.target))
    hardware = measure(drafter, target, context=arguments.context, dtype=arguments.dtype)
    return {
        "hardware": plain(hardware),
        "passes": {
            role: {
                "predicted_ms": predicted(shape, known, arguments),
                "ms": timed(shape, arguments),
            }
            for role, shape, known in (
                ("drafter", drafter, hardware),
                ("target", target, hardware.for_target),
            )
        },
    }


def text_of(record: dict[str, Any]) -> str:
    """The table of a record: medians, and how far predictions were off, from least to most."""
    rows = []
    for role in ("drafter", "target"):
        each = [one["passes"][role] for one in record["comparisons"]]
        for n in record["rows"]:
            told, found = ([one[key][n] for one in each] for key in ("predicted_ms", "ms"))
            off = sorted(a / b - 1 for a, b in zip(told, found, strict=True))
            times = (f"{median(values):.3f}" for values in (told, found))
            off_by = f"{median(off):+.0%} ({off[0]:+.0%} to {off[-1]:+.0%})"
            rows.append((role, str(n), *times, off_by))
    return table(("pass of", "rows", "predicted, ms", "timed, ms", "off by"), rows)


def main() -> int:
    arguments = make_parser().parse_args()
    if arguments.tiny:
        arguments.drafter, arguments.target, arguments.dtype = "tiny-deep", "tiny", "float32"
        arguments.rows, arguments.context, arguments.calls, arguments.times = [1, 4], 16, 1, 2
    record = {
        **provenance(),
        "device": device_record(),
        "shapes": {"drafter": arguments.drafter, "target": arguments.target},
        "dtype": arguments.dtype,
        "context": arguments.context,
        "rows": arguments.rows,
        "comparisons": [compare(arguments) for _ in range(arguments.times)],
    }
    write_record(arguments.out, record)
    print(text_of(record))
    return 0


if __name__ == "__main__":
    leave(exit_code(main))
