"""Describes GPUs to XLA's compiler, which then needs none: a table of cards, and their devices.

In reading order: `Gpu` and the table `GPUS`, `target_text`, which says of a card what XLA wants to
know, and `find_gpus`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

from jspec.errors import UserError

GPUS_A_HOST = 8
"""GPUs that one computer has: the processes of a topology."""

PLUGINS = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13")
"""JAX's compiler for GPUs: kernels and XLA. Neither needs the CUDA libraries to compile."""

CUDNN = 91_200
"""Version of cuDNN that programs are made for where none is installed, as JAX counts them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A card.

    Attributes:
      name: as the driver calls it.
      capability: the major number of its compute capability; the minor one is 0.
      cores: streaming multiprocessors, each with `lanes` float32 units.
      clock: boost clock, GHz.
      memory: bytes that the driver gives.
      bandwidth: of that memory, bytes a second.
      cache: bytes of level 2.
      shared: bytes of shared memory of a multiprocessor; a block may have one KiB less.
    """

    name: str
    capability: int
    cores: int
    lanes: int = 128
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared: int = 228 * 2**10


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        lanes=64,
        clock=1.41,
        memory=85_100_068_864,
        bandwidth=2_039 * 10**9,
        cache=40 * 2**20,
        shared=164 * 2**10,
    ),
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        capability=9,
        cores=132,
        clock=1.98,
        memory=84_942_979_072,
        bandwidth=3_352 * 10**9,
        cache=50 * 2**20,
    ),
    "h200": Gpu(
        name="NVIDIA H200",
        capability=9,
        cores=132,
        clock=1.98,
        memory=151_397_597_184,
        bandwidth=4_800 * 10**9,
        cache=50 * 2**20,
    ),
    "b200": Gpu(
        name="NVIDIA B200",
        capability=10,
        cores=148,
        clock=1.965,
        memory=191_514_411_008,
        bandwidth=7_672 * 10**9,
        cache=132_644_864,
    ),
}
"""Cards with SXM sockets. Source: data sheets, CUDA's programming guide (shared memory, lanes)."""


def target_text(gpu: Gpu) -> str:
    """Write XLA's `GpuTargetConfigProto` of a card."""
    has_extension = gpu.capability >= 9  # instructions of this architecture alone, as on the card
    extension = "ACCELERATED_FEATURES" if has_extension else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared - 2**10,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": gpu.bandwidth,
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
    }
    info = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    capability = f"major: {gpu.capability} feature_extension: {extension}"
    return (
        f"gpu_device_info {{\n{info}\n  cuda_compute_capability {{ {capability} }}\n}}\n"
        'platform_name: "CUDA"\n'
        f"dnn_version_info {{ major: {CUDNN // 10_000} minor: {CUDNN // 100 % 100} }}\n"
        "runtime_version { major: 13 minor: 0 }\n"
        f'device_description_str: "{gpu.name}"\n'
    )


def find_gpus(chip: str, n_devices: int) -> tuple[Any, ...]:
    """Find so many cards of one kind.

    Raises:
      UserError: JAX's compiler for GPUs is missing; several hosts that are not full.
    """
    hosts, rest = divmod(n_devices, GPUS_A_HOST)
    if n_devices < 1 or (hosts and rest):
        raise UserError(
            f"topology {chip}:{n_devices}: expected 1 to {GPUS_A_HOST} cards, or hosts of "
            f"{GPUS_A_HOST}: a multiple of it"
        )
    if any(_is_missing(name) for name in PLUGINS):
        raise UserError(
            "compiling for a GPU needs jax-cuda13-plugin and jax-cuda13-pjrt, which are not "
            "installed; run pip install 'jspec-decoding[gpu-compiler]'"
        )
    from jax.experimental import topologies

    _do_without_cudnn()
    grid = f"1x{max(hosts, 1)}x{GPUS_A_HOST if hosts else rest}"
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target_text(GPUS[chip]), topology=grid
    )
    return tuple(found.devices)


def _is_missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # the package around it
        return True


def _do_without_cudnn() -> None:
    """Let JAX trace cuDNN's attention where cuDNN is not installed.

    Only tracing asks for its version: without a device XLA makes no plan, so cuDNN's own
    refusal of a shape, and its workspace, show on a card alone.
    """
    from jax._src.cudnn import fused_attention_stablehlo as attention

    try:
        attention.check_cudnn_version()
    except RuntimeError:
        attention.check_cudnn_version = lambda: CUDNN
