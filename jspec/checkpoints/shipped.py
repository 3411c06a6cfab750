"""Models that come with jspec, found by name, and the digest that tells a checkpoint from another.

`demo/target` is `weights/demo/target` of a checkout, or of an installed wheel.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from jspec.errors import UserError


def shipped_folders() -> tuple[Path, ...]:
    """Folders that hold shipped models: of an installed wheel, of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return tuple(
        folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir()
    )


def shipped(name: str) -> Path | None:
    """The directory of a shipped model; None if there is none of this name."""
    parts = Path(name).parts
    if Path(name).is_absolute() or not parts or ".." in parts:
        return None
    found = (folder / name for folder in shipped_folders())
    return next((directory for directory in found if directory.is_dir()), None)


def weights_digest(directory: Path) -> str:
    """SHA-256 over the config and the weights of a checkpoint directory, hexadecimal."""
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
