"""Rounds as compiled for accelerators: nothing cache-sized is copied, no weight is made wider.

One process a topology compiles all its cases, two at a time. The numbers are read from programs
that are not run; needs libtpu, or JAX's compiler for GPUs.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.aot import round_programs as rounds

COMPILERS = {"v5e:2x4": "libtpu", "v5p:2x2x1": "libtpu", "h100:1": "jax_cuda13_plugin"}

CASES = {
    "v5e:2x4": (
        "real-greedy-tree-8",
        "real-full-chain-1",
        "tiny-full-tree-8",
        "tiny-greedy-chain-32",
    ),
    "v5p:2x2x1": (
        "real-greedy-tree-8",
        "tiny-greedy-tree-8",
        "tiny-full-tree-32",
        "tiny-full-chain-1",
    ),
    "h100:1": ("real-greedy-tree-8", "tiny-full-tree-8", "tiny-greedy-chain-1"),
}
EVERY = [(topology, case) for topology, cases in CASES.items() for case in cases]
REAL_TREES = [(topology, case) for topology, case in EVERY if case.startswith("real-greedy-tree")]

KERNELS_A_LAYER = 24
"""Most operations that a GPU starts for a layer."""


def compile_cases(topology: str) -> dict:
    if importlib.util.find_spec(COMPILERS[topology]) is None:
        return {}
    command = [sys.executable, "-m", "tests.aot.round_programs", topology, *CASES[topology]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert ran.returncode == 0, ran.stderr
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    return {record["case"]: record for record in records}


@pytest.fixture(scope="module")
def step():
    """What became of a case."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = {name: pool.submit(compile_cases, name) for name in COMPILERS}

        def of(topology: str, case: str) -> dict:
            found = waiting[topology].result()
            if not found:
                pytest.skip(f"{COMPILERS[topology]} is not installed")
            return found[case]

        yield of


@pytest.mark.parametrize("topology, case", EVERY)
def test_no_cache_is_copied_and_none_is_written_back(step, topology, case):
    moved = [each for each in step(topology, case)["moved"] if each["what"].startswith("cache")]
    assert not moved
    assert step(topology, case)["memory"]["aliased"] > 0


@pytest.mark.parametrize("topology, case", EVERY)
def test_no_weight_is_made_wider(step, topology, case):
    assert not step(topology, case)["wide"]


@pytest.mark.parametrize("topology, case", EVERY)
def test_no_rows_of_logits_are_gathered(step, topology, case):
    assert not step(topology, case)["gathers"]


@pytest.mark.parametrize("topology, case", EVERY)
def test_temporaries_are_logits_and_little_more(step, topology, case):
    """Whatever room the cache has; 60 MB at a real width, on each device."""
    size, _, shape, rows = case.split("-")
    n_devices = rounds.N_DEVICES[topology] if size == "real" else 1
    nodes = rounds.N_NODES[size] if shape == "tree" else 11
    vocabulary = (rounds.REAL if size == "real" else rounds.TINY).vocab_size
    logits = 4 * int(rows) * nodes * vocabulary / n_devices
    room = 60e6 if size == "real" else 10e6
    assert step(topology, case)["memory"]["temporaries"] <= logits + room


@pytest.mark.parametrize("topology, case", REAL_TREES)
def test_attention_moves_little_more_than_live_keys_and_values(step, topology, case):
    """And the round's own rows; a kernel's bytes are those of a full cache.

    A v5p has less memory on chip, so that what the kernel gives goes through its main memory.
    """
    traffic = step(topology, case)["traffic"]
    most = {"v5e": 1.15, "v5p": 1.3, "h100": 1.75}[topology.split(":")[0]]
    assert traffic["attention"] <= most * (traffic["kv"] + traffic["rows"])


@pytest.mark.parametrize("topology, case", REAL_TREES)
def test_weights_are_read_once(step, topology, case):
    traffic = step(topology, case)["traffic"]
    weights = traffic["floor"] - traffic["kv"] - traffic["rows"]
    assert 0.9 * weights <= traffic["regions"]["weights"] <= 1.05 * weights
    assert traffic["regions"]["copies"] <= 0.03 * weights


@pytest.mark.parametrize("case", CASES["h100:1"])
def test_a_gpu_starts_few_kernels_a_layer(step, case):
    assert step("h100:1", case)["traffic"]["kernels"] <= KERNELS_A_LAYER
