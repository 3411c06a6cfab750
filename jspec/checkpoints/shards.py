"""The weights of a checkpoint directory: one file, shards named by an index, or shards without one.

In reading order: `open_checkpoint` and the order in which it looks; shards of an index; files
without an index, whose headers list their tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jspec.checkpoints.other_kinds import what_else
from jspec.checkpoints.tensor_files import (
    Tensors,
    missing_file,
    open_safetensors,
    open_torch,
    read_json,
)
from jspec.errors import UserError

Open = Callable[[Path], Tensors]

_SINGLE: tuple[tuple[str, Open], ...] = (
    ("model.safetensors", open_safetensors),
    ("pytorch_model.bin", open_torch),
)
"""A single file of weights, and how it or a shard is opened; the first that is there is read."""

_UNINDEXED: tuple[tuple[str, Open], ...] = (
    ("*.safetensors", open_safetensors),
    ("pytorch_model*.bin", open_torch),
)

_NOT_WEIGHTS = re.compile(r"adapter_|consolidated|diffusion_|model-rank-|optimizer|token_counts")
"""How files begin that are no part of a decoder's weights."""

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.\w+$")


def open_checkpoint(directory: Path) -> Tensors:
    """Open all tensors of a checkpoint directory.

    Raises:
      UserError: no weights that can be read, told with what is there instead; a file that is
        missing or broken; files that contradict each other.
    """
    for single, open_shard in _SINGLE:
        index = f"{single}.index.json"
        for name in (single, index):
            if (directory / name).is_symlink() and not (directory / name).exists():
                raise UserError(f"{directory / name}: {missing_file(directory / name)}")
        if (directory / single).is_file():
            return open_shard(directory / single)
        if (directory / index).is_file():
            return _indexed(directory / index, open_shard)
    for pattern, open_shard in _UNINDEXED:
        files = sorted(
            path
            for path in directory.glob(pattern)
            if (path.is_file() or path.is_symlink()) and not _NOT_WEIGHTS.match(path.name)
        )
        if files:
            _check_numbers(directory, files)
            return _merged((file, open_shard(file)) for file in files)
    raise UserError(
        f"{directory}: no weights: expected model.safetensors, pytorch_model.bin, or their shards; "
        f"{what_else(directory)}"
    )


def _indexed(index: Path, open_shard: Open) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or {*map(type, weight_map.values())} != {str}:
        raise UserError(f"{index}: no weight_map: the file is incomplete or corrupt")
    names = list(dict.fromkeys(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(names)} shards named in {index.name} are "
            f"missing, the first is {missing[0]}; download them"
        )
    shards = {name: open_shard(index.parent / name) for name in names}
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    # Of those in no shard, whoever needs one is told that it is missing; most often nobody does.
    listed = {name: where for name, where in weight_map.items() if name in tensors}
    for name, where in listed.items():
        if name not in shards[where]:
            raise UserError(
                f"{index}: {name} should be in {where}, which does not have it; index and shards "
                "are of two checkpoints: download them again"
            )
    return tensors | {name: shards[where][name] for name, where in listed.items()}


def _check_numbers(directory: Path, files: Sequence[Path]) -> None:
    """Refuse a numbered series that has holes, or two of them side by side."""
    numbers: dict[int, set[int]] = defaultdict(set)
    for file in files:
        found = _NUMBERED.search(file.name)
        if found:
            numbers[int(found[2])].add(int(found[1]))
    if len(numbers) > 1:
        totals = " and of ".join(map(str, sorted(numbers)))
        raise UserError(
            f"{directory}: shards of {totals} lie side by side, and no index tells which are "
            "meant; keep one set"
        )
    for total, present in numbers.items():
        first = 0 if 0 in present else 1
        missing = [n for n in range(first, first + total) if n not in present]
        if missing:
            raise UserError(
                f"{directory}: {len(missing)} of {total} shards are missing, the first is "
                f"number {missing[0]} beside {files[0].name}; download them"
            )


def _merged(opened: Iterable[tuple[Path, Tensors]]) -> Tensors:
    """Join the tensors of files that no index describes.

    Raises:
      UserError: a tensor that is in two of them.
    """
    tensors: Tensors = {}
    home: dict[str, str] = {}
    for path, shard in opened:
        for name in shard:
            if name in home:
                raise UserError(
                    f"{path.parent}: {home[name]} and {path.name} both hold {name}, and no index "
                    "tells which is meant; keep one"
                )
            home[name] = path.name
        tensors |= shard
    return tensors
