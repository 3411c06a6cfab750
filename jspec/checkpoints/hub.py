"""Find the files of a model from its path, the name of a shipped one, or a hub id.

In reading order: `local_directory`, which may download, and `find_directory`, which does not;
models that come with jspec (`demo/target` is `weights/demo/target` of a checkout or of an installed
wheel); the hub and its cache; the digest that tells a checkpoint from another. Models that are
fetched by name are in `published.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jspec.arguments import shown
from jspec.checkpoints.gguf.file import file_digest, is_gguf
from jspec.checkpoints.other_kinds import what_file
from jspec.checkpoints.published import check_fetched, fetched
from jspec.checkpoints.tensor_files import missing_file
from jspec.config.folders import recipe_of
from jspec.errors import UserError

_TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt")
_IGNORED = ("original/*", "consolidated*", "onnx/*", "*.pth")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")


def local_directory(path_or_id: str | Path) -> Path:
    """Find a directory, a GGUF file, a model known by name, or a snapshot of a hub id.

    `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` are obeyed, because `huggingface_hub` obeys them.

    Raises:
      UserError: neither a model's files nor an id that can be fetched.
    """
    path, text = _path(path_or_id), os.fspath(path_or_id)
    if path.is_dir():
        return _of_cache(path)
    if is_gguf(path):
        if not path.is_file():
            raise UserError(f"{path}: {missing_file(path, 'check the path')}")
        return path
    if path.exists():
        raise UserError(f"{path} is {what_file(path)}")
    found = shipped(text) or fetched(text)
    if found is not None:
        return found
    check_fetched(text)
    recipe = recipe_of(path.as_posix())
    if recipe is not None:
        raise UserError(
            f"{path} is not there yet: train it with python -m jspec.train --config {recipe}, or "
            "give another directory or a hub id"
        )
    page = _HUB_PAGE.match(text)
    if page:
        raise UserError(f"{text}: expected a directory or a hub id, not an address; give {page[1]}")
    if not _HUB_ID.fullmatch(text) or text.startswith((".", "~")):
        raise UserError(f"{text}: no such directory, and not a hub id of the form owner/name")
    return _snapshot(text)


def find_directory(path_or_id: str | Path) -> Path | None:
    """Find what `local_directory` would without the network; None where there is nothing.

    Of a hub's model whose `config.json` is in its cache, weights may be missing.
    """
    path, name = _path(path_or_id), os.fspath(path_or_id)
    if is_gguf(path):
        return path if path.is_file() else None
    if path.is_dir():
        return _of_cache(path)
    return shipped(name) or fetched(name) or _cached(name)


def _path(path_or_id: Any) -> Path:
    """Make a path that can be looked at of a path or hub id.

    Raises:
      UserError: neither, or a path that cannot be followed.
    """
    if not isinstance(path_or_id, str | os.PathLike) or not os.fspath(path_or_id):
        raise UserError(f"expected a model's directory or hub id, given {shown(path_or_id)}")
    try:
        path = Path(path_or_id).expanduser()
        if path.is_dir():
            next(path.iterdir(), None)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(os.fspath(path_or_id))} cannot be looked at ({reason})") from None
    return path


def shipped_folders() -> tuple[Path, ...]:
    """List the folders of shipped models: of an installed wheel, of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return tuple(
        folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir()
    )


def shipped(name: str) -> Path | None:
    """Find the directory of a shipped model; None if there is none of this name.

    A folder without files is one of models: the drafters in `weights/smollm2` are no `smollm2`.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or not parts or ".." in parts:
        return None
    found = (folder / name for folder in shipped_folders())
    return next(
        (one for one in found if one.is_dir() and any(map(Path.is_file, one.iterdir()))), None
    )


def _of_cache(path: Path) -> Path:
    """Choose the snapshot of a model's folder in the hub's cache, the main one of several.

    Raises:
      UserError: several, and none of them is the main one.
    """
    if (path / "config.json").exists() or not (path / "snapshots").is_dir():
        return path
    names = sorted(each.name for each in (path / "snapshots").iterdir())
    main = path / "refs" / "main"
    name = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    if name not in names and len(names) != 1:
        told = f"it has {', '.join(names)}" if names else "it has none"
        raise UserError(
            f"{path} is a model's folder in the hub's cache: give one of its snapshots; {told}"
        )
    return path / "snapshots" / (name if name in names else names[0])


def _cached(repo_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _snapshot(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=list(patterns), ignore_patterns=list(_IGNORED)
            )
        )

    try:
        directory = fetch(*_TEXT_FILES, "*.safetensors")
        if not any(directory.glob("*.safetensors")):
            directory = fetch(*_TEXT_FILES, "*.bin")
    except Exception as error:  # the hub's client raises its own, its transport's and OS errors
        raise UserError(f"{repo_id}: no such directory here, {_why(error)}") from None
    return directory


def _why(error: Exception) -> str:
    """Say what kept a model from being fetched from the hub, and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    if isinstance(error, errors.GatedRepoError):
        return "and its page on the hub asks for consent; give it there, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "and not on the hub either; check the name, and set HF_TOKEN if it is private"
    where = f"not whole in the hub's cache ({HF_HUB_CACHE})"
    elsewhere = "give the directory of a checkpoint"
    if HF_HUB_OFFLINE:
        return f"{where}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or {elsewhere}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{where}, and the hub is out of reach; connect to a network, or {elsewhere}"
    reason = (str(error).strip().splitlines() or [""])[0][:100] or type(error).__name__
    return f"and the hub cannot be used ({reason}); {elsewhere}"


def weights_digest(directory: Path) -> str:
    """Digest config and weights of a checkpoint directory: SHA-256, hexadecimal.

    The digest of a GGUF file is that of its bytes, as its publisher may tell it.
    """
    if is_gguf(directory):
        return file_digest(directory)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise UserError(f"{directory} has no safetensors, whose digest is asked for")
    digest = hashlib.sha256()
    for name in ("config.json", *names):
        digest.update(name.encode("utf-8") + b"\0")
        with open(directory / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_digest(directory: Path, expected: str | None) -> None:
    """Refuse a checkpoint that is not the one a config was made with; None takes any.

    Raises:
      UserError: another digest.
    """
    if expected is None:
        return
    given = weights_digest(directory)
    if given != expected:
        raise UserError(
            f"{directory}: expected the weights with digest {expected[:12]}..., given "
            f"{given[:12]}...; restore them, or remove target_digest to use these"
        )
