"""How much memory a run will take, told before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from jspec.config import InferConfig
from jspec.models.config import DecoderConfig
from jspec.models.model import abstract_params, build

_WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device.

    Attributes:
      n_weights: numbers in the target.
      weights, cache: of the target.
      drafter: its files, as they are on disk.
      available: of the first device; None where it does not say.
    """

    n_weights: int
    weights: int
    cache: int
    drafter: int
    available: int | None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.drafter

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available


def estimate(
    config: InferConfig, decoder: DecoderConfig, capacity: int, drafter: Path | None
) -> Memory:
    """An estimate: weights, cache and the drafter's files; not what a program needs in between.

    Args:
      capacity: tokens that a text has room for.
      drafter: directory of its weights, if it has any.
    """
    itemsize = jnp.dtype(config.dtype).itemsize
    shapes = jax.tree.leaves(abstract_params(build(decoder), config.dtype))
    n_weights = sum(math.prod(leaf.shape) for leaf in shapes)
    slot = 2 * decoder.n_layers * decoder.n_kv_heads * decoder.head_dim * itemsize
    shards = config.mesh.layer * config.mesh.tensor
    return Memory(
        n_weights=n_weights,
        weights=n_weights * itemsize // shards,
        cache=config.batch_size * capacity * slot // (shards * config.mesh.data),
        drafter=_file_bytes(drafter) // shards if drafter is not None else 0,
        available=_available(),
    )


def memory_line(memory: Memory, config: InferConfig, capacity: int) -> str:
    """The estimate for the terminal."""
    parts = [
        f"{_count(memory.n_weights)} weights in {config.dtype} {_bytes(memory.weights)}",
        f"cache of {config.batch_size} x {capacity} tokens {_bytes(memory.cache)}",
    ]
    if memory.drafter:
        parts.append(f"drafter {_bytes(memory.drafter)}")
    room = f" of {_bytes(memory.available)}" if memory.available else ""
    return f"memory a device: about {_bytes(memory.total)}{room} ({', '.join(parts)})"


def _available() -> int | None:
    """Bytes of the first device; of the host where the device is the host."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _file_bytes(directory: Path) -> int:
    for pattern in _WEIGHT_FILES:
        sizes = [path.stat().st_size for path in directory.glob(pattern)]
        if sizes:
            return sum(sizes)
    return 0


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"
