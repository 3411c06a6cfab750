"""Cards as XLA's compiler is told of them, and programs for them where it is installed."""

from __future__ import annotations

import importlib.util
import json

import pytest

from jspec.aot import gpus
from jspec.aot.gpus import GPUS, find_gpus, target_text
from jspec.aot.topology import check_name, choose_topology
from jspec.errors import UserError
from tests.aot.processes import aot, python

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="JAX's compiler for GPUs is not installed: pip install 'jspec-decoding[gpu-compiler]'",
)


@pytest.mark.parametrize("chip", GPUS)
def test_a_card_is_told_by_its_own_numbers(chip):
    text, gpu = target_text(GPUS[chip]), GPUS[chip]
    assert f"core_count: {gpu.cores}" in text and f'"{gpu.name}"' in text
    assert f"device_memory_size: {gpu.memory}" in text
    assert ("ACCELERATED_FEATURES" in text) == (chip != "a100")
    assert check_name(f"{chip}:8") == chip


@pytest.mark.parametrize(
    ("name", "platform", "chosen"),
    [(None, "gpu", "h100:1"), (None, "tpu", "v5e:2x2"), ("a100:4", "gpu", "a100:4")],
)
def test_a_platform_alone_has_a_topology(name, platform, chosen):
    assert choose_topology(name, platform) == chosen


@pytest.mark.parametrize(
    ("name", "platform", "said"),
    [
        ("h100:2x2", None, "expected a number of cards"),
        ("v5e:4", None, "expected a grid of chips"),
        ("h100:1", "tpu", "is of a GPU, and --platform is tpu"),
        ("v5e:2x2", "gpu", "is of a TPU, and --platform is gpu"),
    ],
)
def test_a_topology_of_the_other_kind_is_refused(name, platform, said):
    with pytest.raises(UserError, match=said):
        choose_topology(name, platform)


@pytest.mark.parametrize("n_devices", [0, 9, 12])
def test_hosts_have_eight_cards(n_devices):
    with pytest.raises(UserError, match="hosts of 8"):
        find_gpus("h100", n_devices)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(gpus, "PLUGINS", ("jspec.nothing",))
    with pytest.raises(UserError, match=r"pip install 'jspec-decoding\[gpu-compiler\]'"):
        find_gpus("h100", 1)


# --- programs, where the compiler is -------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("topology", ["a100:2", "h100:1", "h200:16", "b200:1"])
def test_prefill_and_round_compile_for_cards(config_file, topology):
    ran = aot("--config", config_file, "--topology", topology, "--json")
    assert ran.returncode == 0, ran.stderr
    found, n_devices = json.loads(ran.stdout), int(topology.split(":")[1])
    assert found["devices"] == n_devices and found["mesh"]["tensor"] == min(n_devices, 4)
    for step in found["steps"]:
        assert step["fits"] and step["available"] == GPUS[topology.split(":")[0]].memory
        sums = [c["count"] for c in step["collectives"] if c["kind"] == "all-reduce"]
        assert bool(sums) == (n_devices > 1)
    assert "Traceback" not in ran.stderr and "WARNING" not in ran.stderr


@needs_compiler
def test_cudnn_attention_is_traced_without_cudnn():
    """By a small program in its own process: two rows of 64 slots, of which some are alive."""
    program = """
import jax, jax.numpy as jnp
from jspec.aot.topology import find_topology, set_environment
set_environment()
device = find_topology("h100:1").devices[0]
def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.sharding.SingleDeviceSharding(device))
def attend(q, k, v, n):
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=n, implementation="cudnn")
rows = shape(2, 64, 1, 64)
text = jax.jit(attend).lower(shape(2, 8, 1, 64), rows, rows, shape(2, dtype=jnp.int32)).compile()
assert "cudnn$fmha" in text.as_text()
"""
    ran = python("-c", program)
    assert ran.returncode == 0, ran.stderr
