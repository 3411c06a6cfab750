"""Compiles what a round does with its logits, at a vocabulary of 128k, for a platform.

    python -m tests.aot.law_programs v5e:2x2 folder case...

A process of its own: a platform's compiler cannot be unloaded, nor told anything later. Writes the
text of each program, `CASE.txt`, and its temporaries in bytes, `CASE.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jspec.aot.topology import find_topology, set_environment
from jspec.drafters.base import DraftSize, chain_size
from jspec.drafters.none import NoDrafter
from jspec.infer.round import accept
from jspec.infer.state import Program
from jspec.law import Mode, Randomness, Rule
from jspec.ops.linear import wide_project
from jspec.ops.platform import compiling_for
from jspec.sharding import make_mesh
from jspec.state import Context, Draft, Sampling
from jspec.testing.models import tiny_target

VOCABULARY, ROWS, WIDTH = 128_256, 8, 256
SIZES = {"tree": DraftSize(n_nodes=64, max_depth=8), "chain": chain_size(8)}


def given(size: DraftSize, mesh) -> tuple[Draft, Any, Any, Context]:
    """Shapes of a draft, the target's features at its nodes, its head, and the text before it."""

    def shape(*dims: int, dtype: Any = jnp.int32) -> Any:
        spec = PartitionSpec("data", *[None] * (len(dims) - 1))
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

    nodes = (ROWS, size.n_nodes)
    number, seed = shape(ROWS, dtype=jnp.float32), shape(ROWS, dtype=jnp.uint32)
    sampling = Sampling(
        temperature=number,
        top_k=shape(ROWS),
        top_p=number,
        min_p=number,
        seed=seed,
        sample=seed,
        stop_ids=shape(ROWS, 2),
        max_length=shape(ROWS),
    )
    context = Context(
        tokens=shape(ROWS, 1024),
        length=shape(ROWS),
        is_active=shape(ROWS, dtype=bool),
        sampling=sampling,
    )
    draft = Draft(
        token=shape(*nodes),
        parent=shape(*nodes),
        depth=shape(*nodes),
        is_valid=shape(*nodes, dtype=bool),
        is_acceptable=shape(*nodes, dtype=bool),
        logprobs=None,
    )
    head = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    weight = jax.ShapeDtypeStruct((WIDTH, VOCABULARY), jnp.bfloat16, sharding=head)
    return draft, shape(*nodes, WIDTH, dtype=jnp.bfloat16), weight, context


def compiled(case: str, devices):
    """A case is such as `full-tree-8`: the mode, the draft, and devices along `tensor`."""
    mode, kind, tensor = case.split("-")
    size = SIZES[kind]
    mesh = make_mesh(tensor=int(tensor), devices=devices[: int(tensor)])
    platform = devices[0].platform
    program = Program(
        target=tiny_target().model,
        drafter=NoDrafter(),
        mode=Mode(mode),
        exits_early=platform != "gpu",
    )

    def verdict(draft, features, head, context):
        logits = wide_project("BTD,DV->BTV", features, head)
        randomness = Randomness(
            sampling=context.sampling, length=context.length, mode=program.mode, rule=Rule.WALK
        )
        return accept(program, draft, logits, context, randomness, size)[0]

    with compiling_for(platform), jax.set_mesh(mesh):
        return jax.jit(verdict).lower(*given(size, mesh)).compile()


if __name__ == "__main__":
    set_environment()
    topology, folder, *cases = sys.argv[1:]
    for case in cases:
        made = compiled(case, find_topology(topology).devices)
        (Path(folder) / f"{case}.txt").write_text(made.as_text() or "")
        memory = made.memory_analysis()
        assert memory is not None, "this compiler tells"
        (Path(folder) / f"{case}.json").write_text(json.dumps(memory.temp_size_in_bytes))
