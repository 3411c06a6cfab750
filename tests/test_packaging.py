"""What is installed: the package with its configs, and none of the links at the top."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from jspec import versions

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("infer", "models", "train")
TEXTS = (".md", ".py", ".yaml")
LARGEST_WHEEL = 95_000_000
"""The package index takes 100 MB."""

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def shipped() -> list[Path]:
    """What comes with the package beside its modules: configs and weights."""
    return CONFIGS + [path for path in (ROOT / "weights").rglob("*") if path.is_file()]


def build(kind: str, folder: Path) -> Path:
    """Build from the checkout with this environment's hatchling; no network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_the_package_its_configs_and_weights(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info") for name in names} == {
        "jspec",
        wheel.name.removesuffix("-py3-none-any.whl"),
    }
    everything = (ROOT / "jspec").rglob("*.*")  # the report's style and script too
    modules = {str(path.relative_to(ROOT)) for path in everything if path.suffix != ".pyc"}
    files = {f"jspec/{path.relative_to(ROOT)}" for path in shipped()}
    assert files and modules | files <= set(names)


def test_wheel_is_small_enough_typed_and_has_the_command(wheel):
    assert wheel.stat().st_size < LARGEST_WHEEL
    assert wheel.name.startswith(versions.DISTRIBUTION.replace("-", "_"))
    with zipfile.ZipFile(wheel) as archive:
        assert "jspec/py.typed" in archive.namelist()
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "jspec = jspec.__main__:main" in archive.read(scripts).decode()


def test_messages_name_the_distribution_and_not_the_other_project():
    """`pip install jspec` would install a validator of JSON documents."""
    other = re.compile(r"(?<!un)install ['\"]?jspec(?!-decoding)\b")
    files = [path for folder in ("jspec", "configs", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path for path in (*files, ROOT / "README.md") if path.suffix in TEXTS]
    assert not [path for path in texts if other.search(path.read_text(encoding="utf-8"))]


def test_installed_wheel_finds_configs_by_name(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import jspec.config as c; from pathlib import Path;"
        f"assert Path(c.__file__).is_relative_to({str(site)!r}), c.__file__;"
        "print(*(c.find_config(name) for name in c.config_names()), sep='\\n')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {Path(line) for line in ran.stdout.splitlines()}
    expected = {site / "jspec" / path.relative_to(ROOT) for path in CONFIGS}
    assert found == expected


def test_source_archive_leaves_the_links_out(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = archive.getnames()
    top = {name.split("/")[1] for name in names if "/" in name}
    assert {"jspec", "configs", "tests", "pyproject.toml", "LICENSE"} <= top
    assert not top & set(LINKS)


def test_extras_are_those_that_the_documentation_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"cuda", "tpu", "gpu-compiler", "plot", "torch", "data", "gguf", "docs", "dev"}
    assert set(project["optional-dependencies"]) == extras


def test_everything_that_is_installed_by_default_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *extras["dev"],
        *extras["torch"],
        *extras["plot"],
        *extras["docs"],
    ]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0] for line in lines if "==" in line and not line.startswith("#")}

    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    missing = {plain(name.split(">=")[0]) for name in wanted} - {plain(name) for name in pins}
    assert not missing
