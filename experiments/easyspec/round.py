"""A pass of a drafter in groups over an exact one, on one device (plan C), at published shapes.

    python -m experiments.easyspec.round --out runs/easyspec_round  one GPU: Llama 3 8B's shape
    python -m experiments.easyspec.round --out runs/easyspec_round --tiny  anywhere: does it run?

Random weights. Every kind of pass is a loop on the device over as many new rows as a tree has nodes
a level; kinds take turns. A pass without attention tells what MLPs and head take, so that attention
has the rest, a share a of the pass. If the G groups of L layers took as long as G of these do, a
pass in groups would take 1 - a (1 - G / L) of an exact one. It reads the same weights, so that
nothing can be gained where reading them is what takes the time: the floor.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.shapes import TARGETS, random_model
from experiments.common.tables import table
from experiments.common.timed_rounds import add_common_flags, n_read, write_record
from jspec.bench.timing import interleaved
from jspec.console.commands import exit_code, leave
from jspec.drafters.easyspec.layer_groups import Groups, contiguous, singles
from jspec.models.blocks import causal_block
from jspec.models.model import ForwardSteps, Model, empty_cache, merged
from jspec.provenance import device_record, provenance

PASSES = 8
"""Of a loop."""

EXACT, MLPS = "exact", "no attention"


class _Mlps(ForwardSteps):
    """A device that leaves attention out."""

    def mix(self, decoder, group, x, cache, rows):
        return [jnp.zeros_like(x) for _ in group], cache


_PLAIN, _MLPS = ForwardSteps(), _Mlps()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    add = parser.add_argument
    add("--shape", choices=TARGETS, default="llama3-8b")
    add("--sizes", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="layers a group")
    add("--widths", type=int, nargs="+", default=[1, 12], help="new rows of a pass")
    add("--contexts", type=int, nargs="+", default=[256, 1024], help="tokens of text")
    add("--calls", type=int, default=7, help="times that each loop is run")
    return parser


def make_tiny(arguments: argparse.Namespace) -> None:
    """Seconds on a CPU."""
    arguments.shape, arguments.dtype = "tiny-deep", "float32"
    arguments.sizes, arguments.widths, arguments.contexts, arguments.calls = [2], [1], [16], 1


@functools.partial(jax.jit, static_argnames=("model", "groups", "steps", "width", "context"))
def passes(
    params, model: Model, cache, *, groups: Groups, steps: ForwardSteps, width: int, context: int
):
    """Passes one after another, each over the tokens that the one before it found likeliest."""

    def step(_, carry):
        cache, tokens = carry
        block = causal_block(jnp.full((1,), context, jnp.int32), width)
        decoder = merged(model, params)
        output, cache = steps.run(decoder, model.config, cache, tokens, block, groups)
        return cache, jnp.argmax(output.logits, axis=-1).astype(jnp.int32)

    return lax.fori_loop(0, PASSES, step, (cache, jnp.zeros((1, width), jnp.int32)))[1]


def calls_at(
    arguments: argparse.Namespace, model: Model, params, width: int, context: int
) -> dict[Hashable, Callable[[], object]]:
    """What is timed of one width and length of text."""
    n_layers = model.config.n_layers
    cache = empty_cache(model.config, 1, context + width, jnp.dtype(arguments.dtype))
    kinds: dict[Hashable, tuple[Groups, ForwardSteps]] = {
        EXACT: (singles(n_layers), _PLAIN),
        MLPS: (singles(n_layers), _MLPS),
    }
    kinds |= {n: (contiguous(n_layers, n), _PLAIN) for n in arguments.sizes}
    return {
        kind: functools.partial(
            passes, params, model, cache, groups=groups, steps=steps, width=width, context=context
        )
        for kind, (groups, steps) in kinds.items()
    }


def compared(arguments: argparse.Namespace, model: Model, seconds: dict[Hashable, float]) -> dict:
    """Ratios to an exact pass, measured and as attention's share of it would have them."""
    n_layers, exact = model.config.n_layers, seconds[EXACT]
    share = 1 - seconds[MLPS] / exact
    groups = {n: len(contiguous(n_layers, n)) for n in arguments.sizes}
    return {
        "exact_ms": 1e3 * exact,
        "attention_share": share,
        "grouped_over_exact": {n: seconds[n] / exact for n in groups},
        "if_groups_were_layers": {n: 1 - share * (1 - g / n_layers) for n, g in groups.items()},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a run."""
    model, params = random_model(arguments.shape, arguments.dtype)
    device = device_record()
    n_bytes = n_read(params, model.config) * jnp.dtype(arguments.dtype).itemsize
    sheet = device["data_sheet_GB_per_s"]
    found: dict[int, dict[int, Any]] = {}
    for context in arguments.contexts:
        for width in arguments.widths:
            timed = interleaved(
                calls_at(arguments, model, params, width, context), rounds=arguments.calls
            )
            seconds = {kind: each["median"] / PASSES for kind, each in timed.items()}
            found.setdefault(context, {})[width] = compared(arguments, model, seconds)
    return {
        **provenance(),
        "device": device,
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "layers": model.config.n_layers,
        "passes": PASSES,
        "calls": arguments.calls,
        "GB": 1e-9 * n_bytes,
        "floor_ms": sheet and 1e-6 * n_bytes / sheet,
        "contexts": found,
    }


def text_of(record: dict[str, Any]) -> str:
    """The table of a record."""
    sizes = list(next(iter(next(iter(record["contexts"].values())).values()))["grouped_over_exact"])
    head = ["text", "rows", "exact, ms", "attention's share"]
    head += [f"N = {n} over exact (if groups were layers)" for n in sizes]
    rows = []
    for context, by_width in record["contexts"].items():
        for width, found in by_width.items():
            ratios = [
                f"{found['grouped_over_exact'][n]:.3f} ({found['if_groups_were_layers'][n]:.3f})"
                for n in sizes
            ]
            share = f"{found['attention_share']:.2f}"
            rows.append((str(context), str(width), f"{found['exact_ms']:.3f}", share, *ratios))
    floor = record["floor_ms"]
    least = f", which takes {floor:.2f} ms at least" if floor else ""
    return f"{table(head, rows)}\n\n{record['GB']:.3g} GB of weights are read a pass{least}"


def main() -> int:
    arguments = make_parser().parse_args()
    if arguments.tiny:
        make_tiny(arguments)
    record = measure(arguments)
    write_record(arguments.out, record)
    print(text_of(record))
    return 0


if __name__ == "__main__":
    leave(exit_code(main))
