"""Every test runs on eight simulated CPU devices, with strict dtype and rank promotion."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder, `JSPEC_SHARED_DATA` or the repository's sibling; skips without it."""
    folder = Path(os.environ.get("JSPEC_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set JSPEC_SHARED_DATA to its folder")
    return folder
