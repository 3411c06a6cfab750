"""Compiled programs kept on disk, so that the second run of a command starts at once."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from jspec.config.folders import cache_folder

SHORTEST_S = 0.3
"""Programs that compile faster are not worth a file."""


def keep_compiled_programs() -> None:
    """Turn JAX's persistent cache on, in the user's cache folder, unless JAX was told otherwise.

    For a process of our own. A folder that cannot be written costs a compilation, nothing else.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder() / "programs" / _machine()
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_S)


def _machine() -> str:
    """Names the instructions of this host: its programs may not run on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features"))}) or lines
    digest = hashlib.sha256("\n".join(features).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
