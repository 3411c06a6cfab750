"""Every test runs on eight simulated CPU devices, with strict dtype and rank promotion.

Programs are compiled fast rather than well where `XLA_FLAGS` is not set (`make proof` has the usual
ones). They are kept in a folder of the run, which its workers and subprocesses share: the
tests compile the same few programs over and over. Hypothesis draws the same examples every time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from jspec.testing.light import LIGHT, xla_flags

os.environ.setdefault("XLA_FLAGS", xla_flags(LIGHT))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("same examples", derandomize=True)
settings.load_profile("same examples")

_PROGRAMS = "JAX_COMPILATION_CACHE_DIR"

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of compiled programs, once a run; workers inherit it."""
    if not hasattr(config, "workerinput"):
        os.environ[_PROGRAMS] = tempfile.mkdtemp(prefix="jspec-programs-")
    jax.config.update("jax_compilation_cache_dir", os.environ[_PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it with the run."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_PROGRAMS], ignore_errors=True)


MOST_MAPPINGS = 20_000
"""Linux gives a process 65,530 mappings, and XLA crashes where it gets no more."""


def n_mappings() -> int:
    """Memory mappings of this process, of which every compiled program has some."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.is_file() else 0


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs after a module once there are many; most are kept in the folder."""
    yield
    if n_mappings() > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder, `JSPEC_SHARED_DATA` or the repository's sibling; skips without it."""
    folder = Path(os.environ.get("JSPEC_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set JSPEC_SHARED_DATA to its folder")
    return folder
