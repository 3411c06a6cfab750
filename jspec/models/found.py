"""What is known of a checkpoint without reading weights, and without the network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.hf import read_config
from jspec.models.hub import find_directory
from jspec.models.known import KNOWN, MASK_IDS
from jspec.models.tensor_files import read_json

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """A model's config and where it was found.

    Attributes:
      name: as it was asked for.
      directory: of its files; None for one that is only known.
    """

    name: str
    config: DecoderConfig
    directory: Path | None

    @property
    def values(self) -> Mapping[str, Any]:
        """Its `config.json`; of one that is only known, what the decoder's config leaves out."""
        if self.directory is not None:
            return read_json(self.directory / CONFIG_FILE)
        return {"mask_token_id": MASK_IDS[self.name]} if self.name in MASK_IDS else {}


def find_shapes(path_or_id: str | Path) -> Found:
    """The config of a checkpoint: a directory, a shipped model, the hub's cache, or a known one.

    Raises:
      UserError: nothing of this name is here.
    """
    directory, name = find_directory(path_or_id), os.fspath(path_or_id)
    if directory is not None:
        return Found(name, read_config(directory), directory)
    if name in KNOWN:
        return Found(name, KNOWN[name], None)
    raise UserError(
        f"{name}: no directory here, not in the hub's cache, and not a known checkpoint; "
        f"give a directory that holds {CONFIG_FILE}, or one of {', '.join(KNOWN)}"
    )


def origin_of(path_or_id: str | Path) -> str:
    """Where the shapes of this name come from, for people."""
    directory = find_directory(path_or_id)
    if directory is None:
        return "the table of known checkpoints"
    return os.fspath(directory / CONFIG_FILE)
