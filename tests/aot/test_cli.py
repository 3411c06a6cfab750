"""The command on simulated CPU devices that stand for a TPU's, and the user's mistakes."""

from __future__ import annotations

import importlib.util
import json

import jax
import numpy as np
import pytest
import yaml

from jspec.aot import cli, topology
from jspec.aot.topology import GIB, Topology
from jspec.aot.traffic import REGIONS
from jspec.checkpoints.target import abstract_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.infer.memory import memory_of
from jspec.sharding import make_mesh
from jspec.testing.models import tiny_config, tiny_target
from jspec.train.config import FalconConfig, TruncatedDataConfig
from jspec.train.falcon import head_of, trainable_of
from tests.support.diffusion import write_tiny
from tests.support.truncated import write_truncated

TOPOLOGY = ["--topology", "v5e:2x4"]


@pytest.fixture
def eight_devices(monkeypatch):
    """Eight devices of a chip's memory, which `find_topology` gives."""

    def install(hbm: int = 16 * GIB) -> None:
        found = Topology("v5e:2x4", "v5e", tuple(jax.devices()[:8]), hbm)
        monkeypatch.setattr(cli, "find_topology", lambda name: found)

    install()
    return install


@pytest.fixture
def config_file(tmp_path):
    """A config of a tiny target of eight heads, and what else is given."""
    target = tiny_target(n_heads=8, n_kv_heads=2)
    write_checkpoint(tmp_path / "target", target.params, target.model.config)

    def write(**more) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"target": str(tmp_path / "target"), **more}))
        return str(path)

    return write


def records(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_config_is_compiled_over_all_devices(eight_devices, config_file, capsys):
    assert cli.main(["--config", config_file(), *TOPOLOGY, "--json"]) == 0
    found = records(capsys)
    assert found["mesh"] == {"data": 1, "layer": 1, "tensor": 8}
    assert [step["name"] for step in found["steps"]] == ["prefill", "round"]
    for step in found["steps"]:
        memory = step["memory"]
        parts = memory["arguments"] + memory["outputs"] + memory["temporaries"] + memory["code"]
        assert memory["total"] == parts - memory["aliased"]
        assert step["fits"]
        assert any(each["kind"] == "all-reduce" for each in step["collectives"])


def test_the_state_of_a_round_is_donated(eight_devices, config_file, capsys):
    arguments = ["--config", config_file(), *TOPOLOGY, "--steps", "round", "--json"]
    assert cli.main(arguments) == 0
    (step,) = records(capsys)["steps"]
    assert step["memory"]["aliased"] >= 0.9 * step["memory"]["outputs"]


def test_a_table_is_printed(eight_devices, config_file, capsys):
    arguments = ["--config", config_file(drafter="prompt-lookup"), *TOPOLOGY, "--steps", "round"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "temporaries" in said.out and "all-reduce" in said.out and "5 nodes a row" in said.out
    assert "shapes of" in said.err and "8 devices of 16.0 GB" in said.err


def test_bytes_of_a_round_are_counted_as_of_all_layers(eight_devices, config_file, capsys):
    arguments = ["--config", config_file(), *TOPOLOGY, "--steps", "round", "--json"]

    def traffic(*flags: str) -> dict:
        assert cli.main([*arguments, *flags]) == 0
        found = records(capsys)
        (step,) = found["steps"]
        return step["traffic"] | {"notes": found["notes"]}

    whole, part = traffic(), traffic("--layers", "1")
    assert any("1 of 2 layers" in note for note in part["notes"])
    assert whole["floor"] == part["floor"]
    assert set(whole["regions"]) == set(REGIONS) and sum(whole["regions"].values()) > 0


def test_a_sweep_has_a_line_for_every_batch_and_length(
    eight_devices, config_file, capsys, monkeypatch
):
    monkeypatch.setattr(cli, "BATCHES", (1, 2))
    monkeypatch.setattr(cli, "CONTEXTS", (64, 128))
    arguments = ["--config", config_file(), *TOPOLOGY, "--sweep"]
    assert cli.main([*arguments, "--json"]) == 0
    rounds = records(capsys)["rounds"]
    sizes = [(each["batch_size"], each["context"]) for each in rounds]
    assert sizes == [(1, 64), (1, 128), (2, 64), (2, 128)]
    floors = [each["traffic"]["floor"] for each in rounds]
    assert floors[0] < floors[1] < floors[3]
    assert cli.main([*arguments, "--layers", "1"]) == 0
    said = capsys.readouterr().out
    assert "scores" in said and len(said.splitlines()) == 1 + 4 + 1


def test_a_draft_model_is_known_by_its_shapes(eight_devices, config_file, tmp_path, capsys):
    small = tiny_target(n_layers=1)
    write_checkpoint(tmp_path / "small", small.params, small.model.config)
    path = config_file(drafter="draft-model", drafter_path=str(tmp_path / "small"))
    assert cli.main(["--config", path, *TOPOLOGY, "--steps", "round", "--json"]) == 0
    found = records(capsys)
    assert set(found["shapes"]) == {str(tmp_path / "target"), str(tmp_path / "small")}


def test_a_truncated_draft_is_known_by_its_shapes(eight_devices, config_file, tmp_path, capsys):
    """With a vocabulary of 24 it reads their columns of the head, and not the target's own head."""
    target, size = tiny_target(n_heads=8, n_kv_heads=2), 24
    counts = np.arange(target.vocab_size)
    write_truncated(tmp_path / "cut", target, counts=counts, draft_vocab_size=size)
    values = {"drafter": "draft-model", "drafter_path": str(tmp_path / "cut")}
    path = config_file(**values, drafter_options={"depth": 2})
    flags = ["--config", path, *TOPOLOGY, "--mesh", "data=8", "--batch-size", "8", "--json"]
    flags += ["--steps", "round"]
    assert cli.main(flags) == 0
    of_some = records(capsys)["steps"][0]["memory"]["arguments"]
    assert cli.main([*flags, "--set", "drafter_options.draft_vocabulary=0"]) == 0
    of_all = records(capsys)["steps"][0]["memory"]["arguments"]
    columns, logits = 32 * (target.vocab_size - size), target.vocab_size - size
    assert of_all - of_some == 4 * (columns + logits - size)  # the ids themselves


def test_a_diffusion_drafter_is_known_by_its_shapes(eight_devices, tmp_path, capsys):
    """MLP and vocabulary are split over the target's devices.

    Prefill keeps keys and values of the prompt: the last layer's MLP and the head add nothing.
    """
    target = tiny_target(n_heads=8, vocab_size=128)
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    dream = write_tiny(tmp_path / "dream", "dream")
    values = {"target": str(tmp_path / "target"), "drafter": "diffuspec"}
    options = {"shortest": 2, "longest": 2}
    path = tmp_path / "config.yaml"

    def arguments(placement: str) -> int:
        drafter = {
            "drafter_path": str(dream),
            "drafter_options": options | {"placement": placement},
        }
        path.write_text(yaml.safe_dump(values | drafter))
        assert cli.main(["--config", str(path), *TOPOLOGY, "--steps", "prefill", "--json"]) == 0
        found = records(capsys)
        assert set(found["shapes"]) == {str(tmp_path / "target"), str(dream)}
        return found["steps"][0]["memory"]["arguments"]

    mlp, embedding = 3 * 32 * 64, 128 * 32
    n_bytes = 4 * (mlp + embedding)
    assert arguments("replicated") - arguments("split") == n_bytes - n_bytes / 8


def test_a_drafter_that_leaves_no_room_is_named(eight_devices, config_file, tmp_path, capsys):
    small = tiny_target(mlp_width=512)
    write_checkpoint(tmp_path / "small", small.params, small.model.config)
    path = config_file(drafter="draft-model", drafter_path=str(tmp_path / "small"))
    eight_devices(hbm=10_000)
    assert cli.main(["--config", path, *TOPOLOGY, "--steps", "prefill"]) == 1
    assert "use a smaller drafter, or split it where it can be" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line_and_a_failure(eight_devices, config_file, capsys):
    eight_devices(hbm=10_000)
    assert cli.main(["--config", config_file(), *TOPOLOGY, "--mesh", "data=8"]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "does not fit: needs" in line and "a v5e device has" in line


def test_a_larger_mesh_is_named(eight_devices, config_file, capsys):
    """Half of the tiny target's weights and cache is less than a device has, all of it is more."""
    config = tiny_config(n_heads=8, n_kv_heads=2)
    target = abstract_target(config, dtype="float32", mesh=make_mesh())
    plain = load_drafter("none", target=target)
    memory = memory_of(target, plain, batch_size=1, capacity=256)
    eight_devices(hbm=int(0.6 * memory.total))
    assert cli.main(["--config", config_file(), *TOPOLOGY, "--mesh", "data=8"]) == 1
    assert "smallest that fits by weights and caches: tensor=2" in capsys.readouterr().err


def test_the_batch_follows_the_mesh_unless_it_is_given(eight_devices, config_file, capsys):
    flags = ["--config", config_file(), *TOPOLOGY, "--mesh", "data=4,tensor=2", "--steps", "round"]
    assert cli.main([*flags, "--json"]) == 0
    assert "batch size 4" in records(capsys)["notes"][0]
    assert cli.main([*flags, "--batch-size", "3"]) == 2
    assert "batch size 3 cannot be split over data=4" in capsys.readouterr().err


def test_a_recipe_is_compiled_with_its_weights_split(eight_devices, capsys):
    sets = ["model.n_layers=1", "batch_size=8", "micro_batch_size=8", "data.length=16"]
    flags = ["--set", *sets, "model.vocab_size=64", "optimizer.name=adamw"]
    assert cli.main(["--config", "demo/target", *TOPOLOGY, "--json", *flags]) == 0
    found = records(capsys)
    assert found["mesh"] == {"data": 1, "fsdp": 8}
    (step,) = found["steps"]
    assert step["name"] == "train" and step["memory"]["aliased"] > 0
    assert any(each["kind"] == "all-gather" for each in step["collectives"])


def test_a_drafters_recipe_is_compiled_beside_its_target(eight_devices, tmp_path, capsys):
    """Of all weights and moments a device holds its part, those of the target too."""
    target = tiny_target()
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    values = {"kind": "falcon", "out": "run", "target": str(tmp_path / "target"), "steps": 4}
    values |= {"batch_size": 8, "data": {"corpora": ["a.jsonl"], "length": 16}, "remat": True}
    (tmp_path / "falcon.yaml").write_text(yaml.safe_dump(values))
    flags = ["--config", str(tmp_path / "falcon.yaml"), *TOPOLOGY, "--json"]
    assert cli.main([*flags, "--set", "compute_dtype=float32"]) == 0
    found = records(capsys)
    assert set(found["shapes"]) == {str(tmp_path / "target")}
    (step,) = found["steps"]
    head = head_beside(target)
    n_trained = trainable_of(head, target.params).n_weights
    whole = 4 * (sum(leaf.size for leaf in jax.tree.leaves(target.params)) + 3 * n_trained)
    assert whole / 8 < step["memory"]["arguments"] < 1.2 * whole / 8
    assert any(each["kind"] == "all-gather" for each in step["collectives"])


def head_beside(target):
    """The head of the recipe above."""
    data = TruncatedDataConfig.model_validate({"corpora": ["a.jsonl"], "length": 16})
    return head_of(FalconConfig(out="run", target="t", steps=4, data=data), target.model)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no topology to compile for"),
        (["--topology", "v5e"], "expected a chip and its grid"),
        (["--topology", "v9:2x2"], "unknown chip 'v9'; known: v4, v5e"),
        ([*TOPOLOGY, "--steps", "round,verify"], "unknown step 'verify'; known: prefill, round"),
        ([*TOPOLOGY, "--steps", "train"], "has no step 'train'"),
        ([*TOPOLOGY, "--mesh", "tensor=4"], "has 4 devices and v5e:2x4 has 8"),
        ([*TOPOLOGY, "--mesh", "tensor=0"], "mesh"),
        ([*TOPOLOGY, "--mesh", "width=8"], "unknown key"),
        ([*TOPOLOGY, "--context", "100000"], "a context of 100000 is more than the 256 tokens"),
        ([*TOPOLOGY, "--prompt-tokens", "0"], "--prompt-tokens must be at least 1"),
        ([*TOPOLOGY, "--set", "drafter=eagle"], "unknown drafter 'eagle'"),
        ([*TOPOLOGY, "--set", "drafter=draft-model"], "draft-model needs the small model"),
        (
            [*TOPOLOGY, "--set", "target=Dream-org/Dream-v0-Instruct-7B"],
            "a Dream model that reads in both directions cannot be decoded",
        ),
        (
            [*TOPOLOGY, "--set", "target=GSAI-ML/LLaDA-8B-Instruct"],
            "a llada model that reads in both directions cannot be decoded",
        ),
        ([*TOPOLOGY, "--set", "drafter=diffuspec"], "diffuspec needs a diffusion model"),
        ([*TOPOLOGY, "--set", "target=nobody/nothing-7b"], "not a known checkpoint"),
        ([*TOPOLOGY, "--layers", "3"], "--layers: expected 1 to 2, not 3"),
        ([*TOPOLOGY, "--wrong"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(eight_devices, config_file, capsys, flags, said):
    assert cli.main(["--config", config_file(), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_heads_that_the_mesh_does_not_divide_are_a_mistake(eight_devices, tmp_path, capsys):
    target = tiny_target(n_heads=6, n_kv_heads=2)
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    path = tmp_path / "config.yaml"
    path.write_text(f"target: {tmp_path / 'target'}\n")
    flags = ["--config", str(path), *TOPOLOGY, "--steps", "round"]
    assert cli.main([*flags, "--mesh", "tensor=8"]) == 2
    assert "6 query heads cannot be split over layer x tensor = 8" in capsys.readouterr().err
    assert cli.main([*flags, "--json"]) == 0
    assert records(capsys)["mesh"] == {"data": 4, "layer": 1, "tensor": 2}


def test_without_a_config_there_is_nothing_to_compile(eight_devices, capsys):
    assert cli.main(TOPOLOGY) == 2
    assert "nothing to compile: give --config" in capsys.readouterr().err


def test_a_recipe_of_another_kind_is_refused(eight_devices, capsys):
    assert cli.main(["--config", "demo/tokenizer", *TOPOLOGY]) == 2
    assert "is of kind 'tokenizer'" in capsys.readouterr().err


def test_without_libtpu_the_extra_is_named(config_file, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        topology.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "libtpu" else find(name, *more),
    )
    assert cli.main(["--config", config_file(), *TOPOLOGY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'jspec-decoding[tpu]'" in line
