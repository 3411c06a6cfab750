"""How much memory a run will take, told before anything is loaded."""

from __future__ import annotations

import os

import jax

from jspec.config import InferConfig
from jspec.drafters import is_own
from jspec.infer.memory import Memory


def memory_line(memory: Memory, config: InferConfig, capacity: int, available: int | None) -> str:
    """The estimate for the terminal.

    Args:
      available: bytes of a device; None where it does not say.
    """
    parts = [
        f"target {_count(memory.n_weights)} weights in {memory.types} {_bytes(memory.weights)}",
        f"its cache of {config.batch_size} x {capacity} tokens {_bytes(memory.cache)}",
    ]
    if memory.drafter:
        parts.append(f"drafter {_count(memory.n_drafter)} weights {_bytes(memory.drafter)}")
    if memory.state:
        parts.append(f"its state {_bytes(memory.state)}")
    if memory.tables:
        parts.append(f"n-grams {_bytes(memory.tables)}")
    if is_own(config.drafter):
        parts.append(f"what {config.drafter} holds is not counted")
    room = f" of {_bytes(available)}" if available else ""
    return f"memory a device: {_bytes(memory.total)}{room} ({', '.join(parts)}), and work space"


def memory_warning(memory: Memory, available: int | None) -> str | None:
    """What to reduce where weights and caches are more than a device has; None if they fit."""
    if available is None or memory.total <= available:
        return None
    narrower = "dtype bfloat16" if memory.types.dtype == "float32" else "weights int8"
    fewer_bytes = f", or {narrower}" if memory.types.weights is None else ""
    parts = {
        "the target's weights": (memory.weights, f"use more devices (mesh.tensor){fewer_bytes}"),
        "the target's cache": (memory.cache, "lower batch_size, max_length or max_new_tokens"),
        "the drafter's weights": (
            memory.drafter,
            "use a smaller drafter, or split it over devices (drafter_options.placement) where it "
            "can be",
        ),
        "the drafter's state": (memory.state, "lower batch_size, max_length or max_new_tokens"),
        "the n-grams": (memory.tables, "estimate fewer n-grams, or none (drafter_options.ngram)"),
    }
    name, (size, remedy) = max(parts.items(), key=lambda part: part[1][0])
    return (
        f"{_bytes(memory.total)} a device do not fit {_bytes(available)}; the largest part is "
        f"{name}, {_bytes(size)}: {remedy}"
    )


def device_memory() -> int | None:
    """Bytes of this host's first device; of the host where the device is the host."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"
