"""Describes accelerators that are not here: their devices and memory, and the mesh over them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from jspec.aot.gpus import GPUS, find_gpus
from jspec.errors import UserError

GIB = 2**30

TPUS: Mapping[str, tuple[int, int]] = {
    "v4": (32, 1228),
    "v5e": (16, 819),
    "v5p": (95, 2765),
    "v6e": (32, 1640),
    "tpu7x": (192, 7380),
}
"""Memory of a chip, GiB, and its bandwidth, 10^9 bytes a second.

Source: Cloud TPU documentation, the page of each version.
"""

CHIPS = (*TPUS, *GPUS)

EXAMPLES = "v5e:2x4, v5p:8x8x16, v6e:4x4, h100:1, a100:8"

DEFAULTS = {"tpu": "v5e:2x2", "gpu": "h100:1"}
"""What is compiled for where only a platform is given."""

_NAME = re.compile(r"(\w+):(\d+(?:x\d+){0,2})")
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v7x": "tpu7x", "7x": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: such as `v5e:2x4`.
      chip: one of `CHIPS`.
      devices: what JAX calls devices; a chip may be two of them.
      hbm: bytes of memory of a device; None where it is not known.
      bandwidth: of that memory, bytes a second; None where it is not known.
    """

    name: str
    chip: str
    devices: tuple[Any, ...]
    hbm: int | None
    bandwidth: int | None = None


def set_environment() -> None:
    """Tell JAX and libtpu before they start that no device is needed, and none is asked for.

    Compiling uses no device, so that several processes may do it at once.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # seconds are to be the compiler's
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any; spares a warning
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def find_topology(name: str) -> Topology:
    """Find the devices of a topology by its name.

    Raises:
      UserError: a name that is none, a topology that does not exist, no compiler for it.
    """
    chip = check_name(name)
    if chip in GPUS:
        gpu = GPUS[chip]
        devices = find_gpus(chip, int(name.partition(":")[2]))
        return Topology(name, chip, devices, gpu.memory, gpu.bandwidth)
    devices = _find_tpus(name)
    n_chips = len({tuple(device.coords) for device in devices})
    memory, bandwidth = (
        size * n_chips // len(devices) for size in (TPUS[chip][0] * GIB, TPUS[chip][1] * 10**9)
    )
    return Topology(name, chip, devices, memory, bandwidth)


def _find_tpus(name: str) -> tuple[Any, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs libtpu, which is not installed; run "
            "pip install 'jspec-decoding[tpu]'"
        )
    from jax.experimental import topologies

    try:
        return tuple(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:  # libtpu's own errors, of several types
        said = " ".join(str(error).split())
        if "lockfile" in said or "already in use" in said:
            raise UserError(
                "libtpu is in use by another process; wait until it has ended"
            ) from None
        raise UserError(f"topology {name}: {said}; such as {EXAMPLES}") from None


def check_name(name: str) -> str:
    """Read the chip that a topology's name begins with.

    Raises:
      UserError: not of the form, or a chip we do not know.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"topology {name!r}: expected a chip and its grid, such as {EXAMPLES}")
    chip = _ALIASES.get(parts[1], parts[1])
    if chip not in CHIPS:
        raise UserError(f"topology {name!r}: unknown chip {parts[1]!r}; known: {', '.join(CHIPS)}")
    if (chip in GPUS) == ("x" in parts[2]):
        wanted = "a number of cards" if chip in GPUS else "a grid of chips"
        raise UserError(f"topology {name!r}: expected {wanted} after {chip}, such as {EXAMPLES}")
    return chip


def choose_topology(name: str | None, platform: str | None) -> str:
    """Take the topology asked for, or the platform's default.

    Raises:
      UserError: neither is given, a name that is none, or one of the other platform.
    """
    if name is None:
        if platform is None:
            raise UserError(f"no topology to compile for: give --topology, such as {EXAMPLES}")
        return DEFAULTS[platform]
    there = "gpu" if check_name(name) in GPUS else "tpu"
    if platform not in (None, there):
        raise UserError(f"topology {name} is of a {there.upper()}, and --platform is {platform}")
    return name


def default_mesh(n_devices: int, n_heads: int) -> dict[str, int]:
    """Put devices along `tensor` as far as the query heads allow, the rest along `data`."""
    tensor = max(n for n in range(1, n_devices + 1) if n_devices % n == 0 and n_heads % n == 0)
    return {"data": n_devices // tensor, "layer": 1, "tensor": tensor}


def choose_mesh(
    sizes: dict[str, int], fallback: dict[str, int], topology: Topology, *, is_asked: bool
) -> tuple[dict[str, int], list[str]]:
    """Take the mesh of these sizes where it has all devices, else `fallback`; and say why.

    Args:
      is_asked: the user asked for these sizes, rather than the config.

    Raises:
      UserError: a mesh that was asked for and has another number of devices.
    """
    there, wanted = len(topology.devices), math.prod(sizes.values())
    if wanted == there or min(sizes.values()) < 1:
        return sizes, []
    if is_asked:
        raise UserError(
            f"mesh {mesh_text(sizes)} has {wanted} devices and {topology.name} has {there}; give "
            "a mesh of all of them, or another topology"
        )
    return fallback, [f"mesh {mesh_text(fallback)} rather than the config's, which has {wanted}"]


def mesh_text(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def gib(n_bytes: float) -> str:
    """Write bytes as a person reads them; chips are sold in units of 2^30."""
    for size, unit in ((n_bytes / GIB, "GB"), (n_bytes / 2**20, "MB")):
        if size >= 0.1:
            return f"{size:.2f} {unit}" if unit == "GB" and size < 10 else f"{size:.1f} {unit}"
    return f"{n_bytes / 1024:.1f} kB"
