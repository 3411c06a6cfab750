"""Models that come with jspec: found by name, told from others by their digest, small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jspec.checkpoints import hub as module
from jspec.checkpoints.hub import check_digest, local_directory, shipped, weights_digest
from jspec.config import config_names, find_config, read_yaml
from jspec.errors import UserError
from jspec.infer.command.cli import main
from tests.support.directories import write_model

MB = 1_000_000
LARGEST_TARGET, LARGEST_IN_ALL = 30 * MB, 60 * MB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_model(folder, seed=0)
    return folder


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder / "copy"))


def test_a_shipped_model_is_found_by_its_name(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    shutil.copytree(checkpoint, tmp_path / "mine/small")
    monkeypatch.setattr(module, "shipped_folders", lambda: (tmp_path,))
    assert local_directory("mine/small") == tmp_path / "mine/small"
    for name in ("mine/large", "../mine/small", str(tmp_path / "mine/large"), ""):
        assert shipped(name) is None
    monkeypatch.setattr(module, "shipped_folders", lambda: (tmp_path / "mine",))
    assert shipped("small") == tmp_path / "mine/small"
    assert shipped("../mine/small") is None  # not out of the folder


def test_the_digest_is_that_of_names_weights_and_config(checkpoint, tmp_path):
    copy = copy_of(checkpoint, tmp_path)
    digest = weights_digest(checkpoint)
    assert weights_digest(copy) == digest
    check_digest(copy, digest)
    (copy / "tokenizer_config.json").write_text("{}")
    assert weights_digest(copy) == digest
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_digest(copy) != digest
    with pytest.raises(UserError, match=f"expected the weights with digest {digest[:12]}"):
        check_digest(copy, digest)


def test_no_weights_have_no_digest(tmp_path):
    with pytest.raises(UserError, match="has no safetensors"):
        weights_digest(tmp_path)


def test_the_command_refuses_other_weights_than_its_config_names(checkpoint, tmp_path, capsys):
    config = tmp_path / "frozen.yaml"
    config.write_text(f"target: {checkpoint}\ntarget_digest: {'a' * 64}\nraw: true\n")
    assert main(["--config", str(config), "--prompt", "x"]) == 2
    assert "expected the weights with digest aaaaaaaaaaaa" in capsys.readouterr().err
    wrong = ["--config", str(config), "--prompt", "x", "--set", "target_digest=abc"]
    assert main(wrong) == 2
    assert "target_digest: expected 64 hexadecimal digits" in capsys.readouterr().err


def test_every_config_of_the_demo_names_the_frozen_target():
    digest = weights_digest(local_directory("demo/target"))
    named = []
    for name in config_names():
        values = read_yaml(find_config(name))
        if "demo/target" in (values.get("target"), values.get("teacher")):
            assert values.get("target_digest", values.get("teacher_digest")) == digest, name
            named.append(name)
    assert {"demo", "demo/texts", "demo/draft", "demo/draft_deep"} <= set(named)


def test_a_folder_of_shipped_models_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shipped_folders", lambda: (tmp_path,))
    (tmp_path / "family" / "small").mkdir(parents=True)
    assert shipped("family") is None
    (tmp_path / "family" / "small" / "config.json").touch()
    assert shipped("family") is None and shipped("family/small") == tmp_path / "family" / "small"


def test_the_shipped_models_are_small_and_have_cards():
    sizes = {}
    for name in ("target", "draft", "draft-deep", "falcon", "diffusion"):
        directory = local_directory(f"demo/{name}")
        sizes[name] = sum(path.stat().st_size for path in directory.rglob("*"))
        assert (directory / "README.md").is_file(), name
    assert sizes["target"] <= LARGEST_TARGET and sum(sizes.values()) <= LARGEST_IN_ALL


def test_the_command_without_arguments_is_the_demo(capsys):
    assert main(["--max-new-tokens", "24"]) == 0
    told = capsys.readouterr()
    assert len(told.out.strip()) > 20
    assert "identical" in told.err and "draft-model" in told.err
