"""Tell operations which platform they are traced for: they choose one of several forms."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

# A context that JAX has in the keys of its caches: no trace for one platform serves another.
_platform: Any = jax.make_user_context(default_value=None)

_INTERPRETED = "interpreted "


def backend() -> str:
    """Name the platform that is traced for: `cpu`, `gpu` or `tpu`."""
    named = _platform.value or jax.default_backend()
    return named.removeprefix(_INTERPRETED)


def is_interpreted() -> bool:
    """Tell whether kernels are interpreted, as what is traced runs on another platform."""
    return (_platform.value or "").startswith(_INTERPRETED)


def compiling_for(platform: str) -> AbstractContextManager[None]:
    """Trace as on a machine of this platform, where what is traced will not run here."""
    return _platform(platform)


def running_as_on(platform: str) -> AbstractContextManager[None]:
    """Trace as on a machine of this platform, and run it here: kernels are interpreted."""
    return _platform(_INTERPRETED + platform)


@functools.cache
def has_bfloat16_tiles(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Tell whether this processor multiplies tiles of bfloat16 (AMX), as far as it says so.

    Args:
      cpuinfo: the file in which Linux lists what a processor can do.
    """
    with contextlib.suppress(OSError):
        lines = Path(cpuinfo).read_text().splitlines()
        flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
        return "amx_bf16" in next(flags, "").split()
    return False
