"""How a CPU multiplies a few rows by bfloat16 matrices: in which order, and beside float32.

    python -m experiments.machine.narrow_products

Thirty matrices of 576 x 1,536, one after another, forms taking turns; a table of milliseconds. It
is why `jspec.ops.linear.OutputsFirst` is, and from how many rows on a matrix comes second.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
from jax import Array, lax

from experiments.common.tables import table
from jspec.bench.timing import interleaved
from jspec.console.commands import exit_code, leave
from jspec.ops.linear import wide_einsum
from jspec.provenance import device_record

MATRICES, INPUTS, OUTPUTS = 30, 576, 1536
ROWS = (1, 2, 4, 8, 16, 24, 32, 64)


def inputs_first(rows: Array, matrix: Array) -> Array:
    return wide_einsum("MI,IO->MO", rows, matrix)


def outputs_first(rows: Array, matrix: Array) -> Array:
    return wide_einsum("MI,OI->MO", rows, matrix)


def matrix_first(rows: Array, matrix: Array) -> Array:
    return lax.optimization_barrier(wide_einsum("OI,MI->OM", matrix, rows))


FORMS: dict[str, tuple[Callable[[Array, Array], Array], str, bool]] = {
    "float32, inputs first": (inputs_first, "float32", False),
    "bfloat16, inputs first": (inputs_first, "bfloat16", False),
    "bfloat16, outputs first": (outputs_first, "bfloat16", True),
    "bfloat16, outputs first, matrix before rows": (matrix_first, "bfloat16", True),
}
"""A product, its type, and whether matrices lie with their outputs first."""


@functools.partial(jax.jit, static_argnums=0)
def through(form: Callable[[Array, Array], Array], rows: Array, matrices: Sequence[Array]) -> Array:
    """All products, each of rows that the one before it has changed."""
    for matrix in matrices:
        said = form(rows, matrix).sum()
        rows = rows + (said * 1e-9).astype(rows.dtype)
    return rows


def measure() -> str:
    keys = jax.random.split(jax.random.key(0), MATRICES)
    matrices = [jax.random.normal(key, (INPUTS, OUTPUTS)) for key in keys]
    held = {
        name: [(m.T.copy() if is_turned else m).astype(dtype) for m in matrices]
        for name, (_, dtype, is_turned) in FORMS.items()
    }
    lines = []
    for n in ROWS:
        rows = jax.random.normal(jax.random.key(1), (n, INPUTS))
        calls = {
            name: functools.partial(through, form, rows.astype(dtype), held[name])
            for name, (form, dtype, _) in FORMS.items()
        }
        timed = interleaved(calls, rounds=15)
        lines.append(
            {"rows": n} | {name: f"{1e3 * one['median']:.2f}" for name, one in timed.items()}
        )
    return f"Milliseconds, medians of 15.\n\n{table(lines)}\n\n{device_record()}"


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(measure())
    return 0


if __name__ == "__main__":
    leave(exit_code(main))
