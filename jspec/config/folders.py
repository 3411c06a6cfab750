"""Where the ready configs are, what their names mean, and where jspec keeps files of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jspec.arguments import hint
from jspec.errors import UserError


def cache_folder() -> Path:
    """The folder of compiled programs and fetched models: `JSPEC_CACHE`, else the user's cache."""
    given = os.environ.get("JSPEC_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or Path(home) / "jspec").expanduser()


def config_folders() -> tuple[Path, ...]:
    """Folders with ready configs: of an installed wheel, of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return tuple(
        folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()
    )


def config_names() -> tuple[str, ...]:
    """Names of the ready configs, sorted."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in config_folders()
        for path in folder.rglob("*.yaml")
    }
    return tuple(sorted(found))


def runnable_names(*, is_training: bool) -> tuple[str, ...]:
    """Names of the ready configs that `jspec.train`, or `jspec.infer`, runs."""

    def trains(name: str) -> bool:
        # The line alone: every start of a command asks this, and parsing all files takes long.
        return re.search(r"^kind:", find_config(name).read_text("utf-8"), re.MULTILINE) is not None

    return tuple(name for name in config_names() if trains(name) == is_training)


def find_config(name_or_path: str) -> Path:
    """The file behind a path, or behind the name of a ready config (`vicuna`, `vicuna.yaml`)."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = re.sub(r"\.ya?ml$", "", name_or_path)
    for folder in config_folders():
        if name in config_names() and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if path.is_dir():
        raise UserError(f"config {name_or_path!r} is a directory; expected a YAML file")
    raise UserError(
        f"config {name_or_path!r} is neither a file nor a known name; {hint(name, config_names())}"
    )


def recipe_of(path: str) -> str | None:
    """The name of the ready recipe that makes a directory or file; None where there is none."""
    for name in runnable_names(is_training=True):
        out = re.search(r"^out:\s*(\S+)", find_config(name).read_text("utf-8"), re.MULTILINE)
        if out is not None and (path == out[1] or path.startswith(f"{out[1]}/")):
            return name
    return None
