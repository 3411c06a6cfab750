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

from jspec.testing.compile_options import light_flags
from jspec.testing.programs import forget_when_many

if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = light_flags()
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


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Most of what a module drops is kept in the folder."""
    yield
    forget_when_many()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder, `JSPEC_SHARED_DATA` or the repository's sibling; skips without it."""
    folder = Path(os.environ.get("JSPEC_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set JSPEC_SHARED_DATA to its folder")
    return folder
