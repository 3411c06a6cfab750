"""From a config to a target, its drafters and a tokenizer: what the commands have in common.

In reading order: `Models`, what is known before a weight is read; `find_models`, which checks all
that can be checked then; `Session`, the models in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import jspec
from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.gguf.file import is_gguf
from jspec.checkpoints.hub import check_digest, local_directory, weights_digest
from jspec.checkpoints.number_types import NumberTypes, number_types
from jspec.checkpoints.target import Target, abstract_target, check_causal, load_target
from jspec.config import DrafterConfig, InferConfig
from jspec.console.reader import Reader
from jspec.drafters import LoadedDrafter, check_drafter, is_own, load_drafter
from jspec.errors import UserError
from jspec.hosts import agreed, check_all_devices
from jspec.infer.engine import Engine
from jspec.infer.memory import Memory, memory_of
from jspec.sharding import make_mesh

Files = Checkpoint | Path
"""A drafter's checkpoint; for a drafter of one's own, the directory that it is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """What is known of a target and its drafters before weights are read.

    Attributes:
      checkpoint: the target's.
      drafters: by the names that a command calls them by.
      files: of those drafters that have any.
      reader: makes prompt tokens; knows the longest text.
    """

    config: InferConfig
    checkpoint: Checkpoint
    drafters: Mapping[str, DrafterConfig]
    files: Mapping[str, Files]
    reader: Reader

    @property
    def essence(self) -> dict[str, Any]:
        """What must be the same on all hosts; where the files are need not be."""
        paths = {"target", "drafter_path", "drafters"}
        return {
            "versions": (jspec.__version__, jax.__version__),
            "config": self.config.model_dump(exclude=paths),
            "target": (self.checkpoint.config, _sizes(self.checkpoint)),
            "drafter": {name: _sizes(files) for name, files in self.files.items()},
        }

    @property
    def types(self) -> NumberTypes:
        """In which types the target computes here."""
        dtype, weights = self.config.dtype, self.config.weights
        return number_types(dtype, weights, platform=jax.default_backend())

    def digests(self) -> dict[str, str | None]:
        """Digest the weights of the target (`target`) and of each drafter that has files, by name.

        None stands for PyTorch's own files, which are not digested.
        """
        files: dict[str, Files] = {"target": self.checkpoint, **self.files}
        return {name: _digest(each) for name, each in files.items()}

    def memory(self, name: str, mesh: Mesh, capacity: int) -> Memory:
        """What weights and caches will take, from configs alone; a drafter of one's own uncounted.

        Args:
          name: of the drafter.
          capacity: tokens that a row has room for.

        Raises:
          UserError: a drafter that does not fit the target, as far as configs tell.
        """
        config = self.config
        target = abstract_target(
            self.checkpoint, dtype=config.dtype, weights=config.weights, mesh=mesh
        )
        if is_own(self.drafters[name].drafter):  # it may read weights: it is called once
            drafter = load_drafter("none", target=target)
        else:
            drafter = self.load_drafter(name, target)
        return memory_of(target, drafter, batch_size=config.batch_size, capacity=capacity)

    def load_drafter(
        self, name: str, target: Target, drafter: DrafterConfig | None = None
    ) -> LoadedDrafter:
        """Load one of the drafters for a target; as shapes where the target is.

        Args:
          drafter: in place of what the config says of it; its files are the same.
        """
        drafter, files = drafter or self.drafters[name], self.files.get(name)
        return load_drafter(drafter.drafter, files, target=target, **drafter.drafter_options)


def find_models(config: InferConfig, drafters: Mapping[str, DrafterConfig]) -> Models:
    """Find the models, and read the configs and the tokenizer.

    Raises:
      UserError: whatever is wrong with the config, the drafters or the directories.
    """
    assert config.target is not None
    for drafter in drafters.values():
        check_drafter(drafter.drafter, drafter.drafter_options)
    # Drafters first, since they are the smaller downloads where something is missing.
    files = {name: _files_of(each) for name, each in drafters.items() if each.drafter_path}
    checkpoint = find_checkpoint(config.target)
    check_digest(checkpoint.files, config.target_digest)
    check_causal(checkpoint)
    longest = checkpoint.config.max_length
    limit = config.max_length or longest
    if limit > longest:
        raise UserError(
            f"max_length {limit} is more than the {longest} tokens that {checkpoint.where} was "
            "made for; lower it"
        )
    reader = Reader(
        tokenizer=checkpoint.tokenizer(config.chat_template),
        max_length=limit,
        vocab_size=checkpoint.config.vocab_size,
    )
    return Models(
        config=config, checkpoint=checkpoint, drafters=drafters, files=files, reader=reader
    )


class Session:
    """A target and its drafters in memory.

    Attributes:
      drafters: by name.
    """

    def __init__(self, models: Models, mesh: Mesh | None = None):
        self.models = models
        mesh = make_mesh(**models.config.mesh.model_dump()) if mesh is None else mesh
        check_all_devices(mesh)
        self.target: Target
        self.drafters: dict[str, LoadedDrafter]
        self.target, self.drafters = agreed(lambda: self._load(mesh))

    def _load(self, mesh: Mesh) -> tuple[Target, dict[str, LoadedDrafter]]:
        models = self.models
        config = models.config
        target = load_target(
            models.checkpoint, dtype=config.dtype, weights=config.weights, mesh=mesh
        )
        return target, {name: models.load_drafter(name, target) for name in models.drafters}

    def engine(
        self,
        name: str | None,
        *,
        batch_size: int,
        max_length: int,
        more_stop_ids: int = 0,
        trace: bool = False,
    ) -> Engine:
        """An engine with one of the drafters; without any for None.

        Args:
          max_length: tokens that a row has room for.
          more_stop_ids: of a request, beside the target's own.
        """
        return Engine(
            self.target,
            None if name is None else self.drafters[name],
            batch_size=batch_size,
            max_length=max_length,
            max_stop_ids=len(self.target.stop_ids) + more_stop_ids,
            rule=self.models.config.rule,
            trace=trace,
            rounds_per_chunk=self.models.config.rounds_per_chunk,
        )


def _files_of(drafter: DrafterConfig) -> Files:
    """A drafter's checkpoint; the files of a drafter of one's own need no `config.json`."""
    assert drafter.drafter_path is not None
    find = local_directory if is_own(drafter.drafter) else find_checkpoint
    return find(drafter.drafter_path)


def path_of(files: Files) -> Path:
    """Where these files are: a directory, or a GGUF file."""
    return files.files if isinstance(files, Checkpoint) else files


def weight_files(files: Files) -> list[Path]:
    """Files of weights."""
    path = path_of(files)
    return sorted([path] if is_gguf(path) else [*path.glob("*.safetensors"), *path.glob("*.bin")])


def _sizes(files: Files) -> list[tuple[str, int]]:
    """Names and bytes of weights."""
    return [(file.name, file.stat().st_size) for file in weight_files(files)]


def _digest(files: Files) -> str | None:
    has_digest = any(file.suffix != ".bin" for file in weight_files(files))
    return weights_digest(path_of(files)) if has_digest else None
