"""Real programs for real topologies, where libtpu is installed; it needs no TPU."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import yaml

from jspec.checkpoints.write import write_checkpoint
from jspec.testing.models import tiny_target
from tests.aot.processes import aot

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jspec-decoding[tpu]'",
)


def test_prefill_and_round_compile_for_four_chips(config_file):
    ran = aot("--config", config_file, "--topology", "v5e:2x2", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["devices"] == 4 and found["mesh"]["tensor"] == 4
    for step in found["steps"]:
        assert step["fits"] and step["available"] == 16 * 2**30
        assert sum(c["count"] for c in step["collectives"] if c["kind"] == "all-reduce") > 0
    assert "Traceback" not in ran.stderr and "WARNING" not in ran.stderr


def test_a_model_too_large_for_a_chip_is_one_line():
    """Vicuna in float32 is 25 GB and its cache more; the compiler itself refuses it."""
    flags = ["--set", "dtype=float32", "--context", "128", "--steps", "round"]
    ran = aot("--config", "vicuna", "--topology", "v5e:2x2", "--mesh", "data=4,tensor=1", *flags)
    assert ran.returncode == 1
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in ran.stderr
    assert (
        re.search(r"round does not fit: needs [23]\d.* GB", errors[0]) and "tensor=2" in errors[0]
    )


def test_a_topology_that_does_not_exist_is_one_line(config_file):
    ran = aot("--config", config_file, "--topology", "v5e:3x3")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: topology v5e:3x3")
    assert "Traceback" not in ran.stderr


def test_easyspec_compiles_for_a_pod(tmp_path):
    """1,024 chips: rows over 128 of them, layers side by side over 4, heads over 2 inside."""
    sizes = {"n_heads": 8, "n_kv_heads": 8, "head_dim": 4, "vocab_size": 64}
    for name, layers in (("target", 1), ("small", 5)):
        made = tiny_target(n_layers=layers, **sizes)
        write_checkpoint(tmp_path / name, made.params, made.model.config)
    values = {
        "target": str(tmp_path / "target"),
        "drafter": "easyspec",
        "drafter_path": str(tmp_path / "small"),
        "drafter_options": {"plan": "A", "size": 3, "depth": 3, "width": 2},
        "dtype": "bfloat16",
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    flags = ["--topology", "v5p:8x8x16", "--mesh", "data=128,layer=4,tensor=2", "--json"]
    ran = aot("--config", str(config), *flags, "--steps", "round")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["devices"] == 1024
    (step,) = found["steps"]
    assert step["fits"]
    gathers = [c["count"] for c in step["collectives"] if c["kind"] == "all-gather"]
    # One group of three layers in two passes, the best of each level's scores, the target's pick;
    # and once a dispatch what the host is told.
    assert sum(gathers) == 2 + 3 + 2 + 1
