"""Compiles rounds for accelerators that are not here, and prints what became of each.

python -m tests.aot.round_programs TOPOLOGY CASE... ; a case is SIZE-MODE-SHAPE-ROWS, such as
`tiny-full-tree-8`. A process of its own: a compiler cannot be told anything later.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jspec.aot.inference import steps_of
from jspec.aot.steps import StepReport, compile_step
from jspec.aot.topology import Topology, find_topology, set_environment
from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.target import abstract_target
from jspec.drafters import load_drafter
from jspec.infer.executables import Executables
from jspec.law import Mode, Rule
from jspec.models.config import DecoderConfig
from jspec.sharding import make_mesh
from jspec.testing.drafters import Oracle

LAYERS = 2
"""That are compiled; more would be the same again."""

TINY = DecoderConfig(
    vocab_size=6144,
    width=512,
    mlp_width=1536,
    n_layers=LAYERS,
    n_heads=8,
    n_kv_heads=4,
    head_dim=128,
    max_positions=1024,
)
REAL = KNOWN["meta-llama/Llama-3.1-8B-Instruct"]
"""Llama 3 8B: 8 key/value heads of 128, a vocabulary of 128k."""

DEPTH, WIDTH = {"tiny": 3, "real": 7}, {"tiny": 4, "real": 9}
N_NODES = {size: 1 + DEPTH[size] * WIDTH[size] for size in DEPTH}

N_DEVICES = {"v5e:2x4": 8, "v5p:2x2x1": 4, "h100:1": 1}


def compiled(topology: Topology, case: str) -> StepReport:
    """Compile the round of a case; a real one over all devices, a tiny one on the first."""
    size, mode, shape, rows = case.split("-")
    config = TINY if size == "tiny" else REAL
    n_devices = 1 if size == "tiny" else len(topology.devices)
    mesh = make_mesh(tensor=n_devices, devices=topology.devices[:n_devices])
    fewer = dataclasses.replace(config, n_layers=LAYERS, windows=config.windows[:LAYERS])
    target = abstract_target(fewer, dtype="bfloat16", mesh=mesh)
    drafter = load_drafter("prompt-lookup", target=target)
    if shape == "tree":
        where = NamedSharding(mesh, PartitionSpec())
        texts = jax.ShapeDtypeStruct((1, 1024), jnp.int32, sharding=where)
        tree = Oracle(vocab_size=config.vocab_size, depth=DEPTH[size], width=WIDTH[size])
        drafter = dataclasses.replace(drafter, drafter=tree, params=texts)
    programs = Executables(
        target=target,
        drafter=drafter,
        rule=Rule.WALK,
        trace=False,
        loop=None,
        batch_size=int(rows),
        capacity=config.max_positions if size == "tiny" else 8192,
        rounds=8,
    )
    _, step = steps_of(programs, Mode[mode.upper()], 512, config.n_layers)
    return compile_step(step, topology.devices, topology.hbm)


def main(name: str, *cases: str) -> None:
    set_environment()
    topology = find_topology(name)
    for case in cases:
        print(json.dumps({"case": case} | compiled(topology, case).record()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
