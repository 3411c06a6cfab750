"""What the operations are traced for: they have several forms, and choose one by the backend."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax

# A context that JAX has in the keys of its caches: no trace for one platform serves another.
_platform: Any = jax.make_user_context(default_value=None)


def backend() -> str:
    """The platform that is traced for: `cpu`, `gpu` or `tpu`."""
    return _platform.value or jax.default_backend()


def compiling_for(platform: str) -> AbstractContextManager[None]:
    """Tracing as it is on a machine of this platform, where what is traced will not run here."""
    return _platform(platform)
