"""Programs of models with narrow matrices: no compiler makes a wide one of them.

    python -m tests.aot.test_weight_programs v5e:2x2

prints what is found in the programs of a topology; a process of its own, since libtpu cannot be
unloaded.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jspec.aot import hlo
from jspec.aot.topology import find_topology, set_environment
from jspec.checkpoints.number_types import QUANTISED
from jspec.checkpoints.target import Target, abstract_target
from jspec.models.blocks import causal_block
from jspec.models.config import DecoderConfig
from jspec.models.model import empty_cache, forward
from jspec.ops import linear
from jspec.ops.linear import Quantised
from jspec.ops.platform import compiling_for
from jspec.sharding import make_mesh


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    is_missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(is_missing, reason=f"{module} is missing: pip install '{extra}'")


CONFIG = DecoderConfig(
    vocab_size=16_384,
    width=2048,
    mlp_width=5632,
    n_layers=1,
    n_heads=16,
    n_kv_heads=4,
    head_dim=128,
    max_positions=512,
)
"""Matrices of up to 67 MB in bfloat16: large enough to be streamed."""

TOPOLOGIES = [
    pytest.param("v5e:2x2", marks=needs("libtpu", "jspec-decoding[tpu]")),
    pytest.param("h100:1", marks=needs("jax_cuda13_plugin", "jspec-decoding[gpu-compiler]")),
]


def program(topology: str, weights: str | None, n_rows: int) -> tuple[Target, Any]:
    """Compile a forward of so many rows for the topology's first device."""
    devices = find_topology(topology).devices[:1]
    mesh = make_mesh(devices=devices)
    target = abstract_target(CONFIG, dtype="bfloat16", weights=weights, mesh=mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def run(params, cache, tokens, start):
        block = causal_block(start, n_rows)
        output, cache = forward(params, target.model, cache, tokens, block)
        return jnp.argmax(output.logits, -1), cache

    given = jax.eval_shape(
        lambda: (
            empty_cache(CONFIG, 1, 512, jnp.bfloat16),
            jnp.zeros((1, n_rows), jnp.int32),
            jnp.zeros((1,), jnp.int32),
        )
    )
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), given
    )
    with compiling_for(devices[0].platform):
        lowered = jax.jit(run, donate_argnums=1).lower(target.params, *given)
    return target, lowered.compile()


def wide_matrices(target: Target, text: str) -> dict[str, int]:
    """Count arrays in memory that have a quantised matrix's shape and a wide type."""
    flat = jax.tree.leaves(target.params, is_leaf=lambda node: isinstance(node, Quantised))
    shapes = {leaf.shape for leaf in flat if isinstance(leaf, Quantised)}
    shapes |= {shape[::-1] for shape in shapes}
    shapes -= {leaf.shape for leaf in flat if not isinstance(leaf, Quantised)}
    instructions = hlo.read(text)
    fused = {
        name
        for each in instructions
        if each.operation == "fusion"
        for role, name in each.calls
        if role == "calls"
    }
    found: collections.Counter[str] = collections.Counter()
    for each in instructions:
        if each.computation in fused or each.operation in ("parameter", "get-tuple-element"):
            continue
        for array in each.results:
            if array.dtype in ("bf16", "f16", "f32") and hlo.squeezed(array.dims) in shapes:
                found[str(array)] += 1
    return dict(found)


def described(target: Target, compiled) -> dict[str, Any]:
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        "wide": wide_matrices(target, text),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "products": text.count(" convolution("),
    }


def with_wide_matrices(spec, rows, weight, project=linear.wide_project):
    """Multiply as no program should: with a matrix that is made wide first."""
    if isinstance(weight, Quantised):
        values = jax.lax.optimization_barrier(weight.values.astype(rows.dtype))
        weight = Quantised(values=values, scale=weight.scale)
    return project(spec, rows, weight)


def main(topology: str) -> None:
    set_environment()
    fused = [name for name in QUANTISED if name != "int4" or "v5e" in topology]
    cases = [(None, 1), (None, 2), ("int8", 1), ("int8", 2), *((name, 26) for name in fused)]
    found = {f"{w} {rows}": described(*program(topology, w, rows)) for w, rows in cases}
    linear.wide_project = with_wide_matrices
    found["fault"] = described(*program(topology, "int8", 26))
    print(json.dumps(found))


@pytest.fixture(scope="module", params=TOPOLOGIES)
def found(request) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.aot.test_weight_programs", request.param]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return {"topology": request.param} | json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", ["int8 1", "int8 2", "int8 26", "fp8 26", "int4 26"])
def test_no_wide_matrix_is_made(found, program):
    if program not in found:
        pytest.skip("refused where it is not fused: test_number_types.py")
    assert found[program]["wide"] == {}
    assert found["fault"]["wide"], "what is looked for is found where it is"


def test_narrow_matrices_are_what_a_program_is_given(found):
    """The embedding stays wide: two bytes for 33 of 113 million numbers."""
    table = 2 * CONFIG.vocab_size * CONFIG.width
    matrices = found["None 2"]["arguments"] - table
    for program, size in (("int8 2", 1 / 2), ("fp8 26", 1 / 2), ("int4 26", 1 / 4)):
        if program in found:
            narrow = found[program]["arguments"] - table
            assert narrow == pytest.approx(matrices * size, rel=0.03)


def test_a_lone_row_is_multiplied_as_two_are(found):
    for weights in (None, "int8"):
        alone, two = found[f"{weights} 1"], found[f"{weights} 2"]
        assert alone["temporaries"] < two["temporaries"] + 2**20
        if found["topology"].startswith("v5e"):  # all matrices are the matrix unit's
            assert alone["products"] >= 7 * CONFIG.n_layers + 1


if __name__ == "__main__":
    main(sys.argv[1])
