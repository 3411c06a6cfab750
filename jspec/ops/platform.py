"""Tell operations which platform they are traced for: they choose one of several forms."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax

# A context that JAX has in the keys of its caches: no trace for one platform serves another.
_platform: Any = jax.make_user_context(default_value=None)


def backend() -> str:
    """Name the platform that is traced for: `cpu`, `gpu` or `tpu`."""
    return _platform.value or jax.default_backend()


def compiling_for(platform: str) -> AbstractContextManager[None]:
    """Trace as on a machine of this platform, where what is traced will not run here."""
    return _platform(platform)
