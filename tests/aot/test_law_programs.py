"""The law at a vocabulary of 128k, as compiled for accelerators: what it passes over, how often.

The numbers are read from programs that are not run; needs libtpu, or JAX's compiler for GPUs.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import pytest

from jspec.aot.hlo import collective_instructions, read
from tests.aot.law_programs import ROWS, SIZES, VOCABULARY

NODES = SIZES["tree"].n_nodes
TOPOLOGIES = {"v5e:2x4": "libtpu", "h100:1": "jax_cuda13_plugin"}
CASES = {
    "v5e:2x4": ("full-tree-1", "plain-tree-1", "greedy-tree-1", "full-tree-8", "greedy-tree-8"),
    "h100:1": ("full-tree-1", "plain-tree-1", "full-chain-1"),
}
SAMPLED = [("v5e:2x4", "full-tree-1"), ("v5e:2x4", "plain-tree-1"), ("h100:1", "full-tree-1")]
SAMPLED += [("h100:1", "plain-tree-1"), ("v5e:2x4", "full-tree-8")]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The instructions of a case, its text and its temporaries; a platform is compiled for once."""
    folders = {}

    def of(topology: str, case: str):
        if importlib.util.find_spec(TOPOLOGIES[topology]) is None:
            pytest.skip(f"{TOPOLOGIES[topology]} is not installed")
        if topology not in folders:
            folders[topology] = folder = tmp_path_factory.mktemp("law")
            command = [sys.executable, "-m", "tests.aot.law_programs", topology, str(folder)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run([*command, *CASES[topology]], check=True, env=environment, timeout=600)
        text = (folders[topology] / f"{case}.txt").read_text()
        return read(text), text, json.loads((folders[topology] / f"{case}.json").read_text())

    return of


def in_memory(instructions):
    """What lies in memory between kernels: not what a fusion has inside, nor passes on."""
    inside = {name for each in instructions for role, name in each.calls if role == "calls"}
    passed_on = ("parameter", "get-tuple-element", "tuple", "while", "bitcast")
    return [
        each
        for each in instructions
        if each.computation not in inside and each.operation not in passed_on
    ]


@pytest.mark.parametrize("topology,case", [*SAMPLED, ("v5e:2x4", "greedy-tree-1")])
def test_nothing_of_all_nodes_is_made_beside_their_logits(program, topology, case):
    """No noise, no scores, no copy: whatever else is made is of a node or two of each row."""
    instructions, _, temporaries = program(topology, case)
    devices = int(case[-1])
    made = [a for each in in_memory(instructions) for a in each.results if not a.is_on_chip]
    sizes = [math.prod(a.dims) for a in made if a.dtype != "bf16"]  # those are the head's
    logits = ROWS * NODES * VOCABULARY // devices
    assert [size for size in sizes if size > 2 * ROWS * VOCABULARY] in ([], [logits])
    assert temporaries < 4 * logits + 16e6


@pytest.mark.parametrize("topology,case", SAMPLED)
def test_no_gather_goes_over_the_vocabulary(program, topology, case):
    instructions, _, _ = program(topology, case)
    gathered = [math.prod(e.arrays[0].dims) for e in instructions if e.operation == "gather"]
    rows = ROWS * VOCABULARY if topology.startswith("h100") else 0  # one node's, fused
    assert all(size <= max(rows, ROWS * 512) for size in gathered)


def test_a_pass_of_a_threshold_weighs_fifteen_trials_at_once(program):
    """Two loops on TPU, of top-k and top-p, each with one pass over the values in its body."""
    instructions, _, _ = program("v5e:2x4", "full-tree-1")
    sums = [each for each in in_memory(instructions) if each.is_in_loop and _n_sums(each) == 15]
    assert len(sums) == 2
    instructions, text, _ = program("h100:1", "full-tree-1")
    assert len(re.findall(rf"= f32\[{ROWS},15\]\S* fusion\(", text)) == 2 * 32 // 4


def _n_sums(each) -> int:
    return sum(array.dtype == "f32" and array.dims == (ROWS,) for array in each.arrays)


def test_on_a_split_vocabulary_a_pass_waits_for_one_collective(program):
    """Two loops of eight passes: a quarter of what one bit a pass waited for."""
    instructions, _, _ = program("v5e:2x4", "full-tree-8")
    found = [each for each in collective_instructions(instructions) if each.is_in_loop]
    passes = [each for each in found if _n_sums(each) == 15]
    assert len(passes) == 2 and len({each.computation for each in passes}) == 2
    # Beside them, once a level: the pick, its logit, the largest score and the mass it is of.
    assert len(found) <= 2 + 5
    assert all(each.n_bytes <= 15 * 4 * ROWS + 512 for each in found)


def test_greedy_picks_on_a_mesh_wait_once_for_all_nodes(program):
    instructions, _, _ = program("v5e:2x4", "greedy-tree-8")
    found = collective_instructions(instructions)
    assert found and not any(each.is_in_loop for each in found)


def test_a_gpu_judges_a_chain_at_once_and_a_tree_along_the_path(program):
    """Thresholds are where they are computed: in the walk's loop, or before it."""

    def are_in_loop(case: str) -> set[bool]:
        instructions, _, _ = program("h100:1", case)
        return {each.is_in_loop for each in instructions if each.arrays[0].dims[-1:] == (15,)}

    assert are_in_loop("full-tree-1") == {True}
    assert are_in_loop("full-chain-1") == {False}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_compiled_pick_takes_a_nan_for_the_largest(program, topology):
    """Its reduction asks of a score whether it is itself, which only a NaN is not."""
    _, text, _ = program(topology, "full-tree-1")
    assert re.search(r"pred\[\]\S* compare\(%?([\w.\-]+), %?\1\), direction=NE", text)
