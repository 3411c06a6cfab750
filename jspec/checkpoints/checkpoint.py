"""A checkpoint: what its files say of a model, each read once.

In reading order: `Checkpoint`, and `find_checkpoint`, which makes one of a directory, a GGUF file,
a shipped model's name, or a hub id. Whoever was given a checkpoint hands it on, so that nothing is
read twice.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jspec.checkpoints.fit import canonical, has_other_head
from jspec.checkpoints.gguf.file import is_gguf, open_gguf
from jspec.checkpoints.gguf.values import config_values, gguf_layout
from jspec.checkpoints.hf_config import Fields, read_hf_config, read_layout
from jspec.checkpoints.hub import find_directory, local_directory
from jspec.checkpoints.known import KNOWN, MASK_IDS
from jspec.checkpoints.layouts import Layout
from jspec.checkpoints.other_kinds import looks_like_a_decoder, what_else
from jspec.checkpoints.published import check_fetched
from jspec.checkpoints.shards import open_checkpoint
from jspec.checkpoints.tensor_files import Tensors, read_json
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.errors import UserError
from jspec.models.config import DecoderConfig

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's files. All properties are read when they are first asked for, and kept.

    Attributes:
      name: as it was asked for: a path, a shipped model's name, or a hub id.
      path: the directory of its files, or its GGUF file; None for a model that is only known.
      values: the contents of `config.json`, or what a GGUF file says instead; of a model that is
        only known, the little that its decoder's config leaves out.
    """

    name: str
    path: Path | None
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Name its path, or the model itself where it has none; for messages."""
        return self.name if self.path is None else os.fspath(self.path)

    @property
    def files(self) -> Path:
        """The path.

        Raises:
          UserError: a model that is only known.
        """
        if self.path is None:
            raise UserError(f"{self.name}: its files are not here; give a directory that has them")
        return self.path

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and is_gguf(self.path)

    @functools.cached_property
    def described(self) -> DecoderConfig:
        """Read the decoder that `config.json` describes, or a GGUF file's metadata.

        Raises:
          UserError: it describes another kind of model, which is named.
        """
        if self.path is None:
            return KNOWN[self.name]
        other = looks_like_a_decoder(self.path, self.values)
        if other:
            raise UserError(f"{self.path}: {other}")
        try:
            return read_hf_config(self.values)
        except UserError as error:
            told = str(error).removeprefix(f"{CONFIG_FILE}: ")
            raise UserError(f"{self.origin}: {told}") from None

    @functools.cached_property
    def config(self) -> DecoderConfig:
        """Correct what is described: a head of its own where the weights have one.

        Raises:
          UserError: as `described`.
        """
        if self.described.has_tied_head and self._has_other_head():
            return dataclasses.replace(self.described, has_tied_head=False)
        return self.described

    @property
    def shares_embedding(self) -> bool:
        """Tell whether embedding and head are those of a target that it drafts for."""
        return Fields(self.values, {"shares_embedding": False}).flag("shares_embedding")

    @functools.cached_property
    def layout(self) -> Layout:
        """Find how the decoder's weights are named."""
        return gguf_layout(self.values) if self.is_gguf else read_layout(self.values)

    @functools.cached_property
    def tensors(self) -> Tensors:
        """Open all tensors, by their names in the files; none is read yet.

        Raises:
          UserError: no weights here, or files that cannot be read.
        """
        return open_gguf(self.files).tensors if self.is_gguf else open_checkpoint(self.files)

    @functools.cached_property
    def decoder_tensors(self) -> Tensors:
        """Rename them to the layout's names, however their saver wrapped the model."""
        return canonical(self.files, self.tensors, self.layout)

    @functools.cached_property
    def generation(self) -> Mapping[str, Any]:
        """Read `generation_config.json`; empty where there is none."""
        path = None if self.path is None else self.path / GENERATION_FILE
        return read_json(path) if path is not None and path.is_file() else {}

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Find the ids that end a text, in `generation_config.json`, else in the config.

        Nothing else is taken from `generation_config.json`.

        Raises:
          UserError: something that is no token id.
        """
        for values, where, key in (
            (self.generation, f"{self.where}/{GENERATION_FILE}", "eos_token_id"),
            (self.values, self.origin, "eos_token_id"),
            (self.values, self.origin, "eos_id"),
        ):
            ids = values.get(key)
            if ids is None:
                continue
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(token) is int and token >= 0 for token in ids):
                raise UserError(
                    f"{where}: {key} must be a token id, a list of them or null, got "
                    f"{values[key]!r}; correct it"
                )
            return tuple(dict.fromkeys(ids))
        return ()

    def tokenizer(self, chat_template: str | None = None) -> Tokenizer | None:
        """Load its tokenizer; see `load_tokenizer`."""
        return load_tokenizer(self.path, chat_template, model=self.values)

    @property
    def origin(self) -> str:
        """Say where the shapes come from, for people."""
        if self.path is None:
            return "the table of known checkpoints"
        return os.fspath(self.path if self.is_gguf else self.path / CONFIG_FILE)

    def _has_other_head(self) -> bool:
        """Tell whether the weights, as far as they are here, have a head of their own."""
        if self.path is None:
            return False
        try:
            tensors = self.decoder_tensors
        except UserError:  # only the config is needed, to plan; whoever reads the weights is told
            return False
        return has_other_head(tensors, self.layout)


def find_checkpoint(path_or_id: str | Path | Checkpoint, *, downloads: bool = True) -> Checkpoint:
    """Find the checkpoint of a directory, a GGUF file, a shipped model's name, or a hub id.

    Args:
      path_or_id: a checkpoint is handed back.
      downloads: whether files may be fetched from the hub. If not, its cache is looked at, and a
        model that is not there may be one whose shapes are known.

    Raises:
      UserError: no such checkpoint, or no readable `config.json` in it.
    """
    if isinstance(path_or_id, Checkpoint):
        return path_or_id
    if downloads:
        return _read(local_directory(path_or_id), os.fspath(path_or_id))
    path, name = find_directory(path_or_id), os.fspath(path_or_id)
    if path is not None:
        return _read(path, name)
    check_fetched(name)
    if name in KNOWN:
        values = {"mask_token_id": MASK_IDS[name]} if name in MASK_IDS else {}
        return Checkpoint(name=name, path=None, values=values)
    raise UserError(
        f"{name}: no directory here, not in the hub's cache, and not a known checkpoint; "
        f"give a directory that holds {CONFIG_FILE}, or one of {', '.join(KNOWN)}"
    )


def _read(path: Path, name: str) -> Checkpoint:
    """Read the config of a directory or GGUF file.

    Raises:
      UserError: no `config.json`, a config that cannot be read, or a GGUF file of another kind.
    """
    if is_gguf(path):
        return Checkpoint(name=name, path=path, values=config_values(open_gguf(path)))
    config = path / CONFIG_FILE
    if not config.exists() and not config.is_symlink() and path.is_dir():
        raise UserError(f"{config}: no such file; {what_else(path)}")
    return Checkpoint(name=name, path=path, values=read_json(config))
