"""Which versions are installed; refuses a JAX and a Flax that do not work together.

Imports neither.
"""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "jspec-decoding"
"""What is installed to import jspec; `jspec` is another project's name on the package index."""

_LAST_FLAX = (0, 12, 8)
_FIRST_JAX = (0, 11, 1)
"""Flax up to `_LAST_FLAX` does not import with JAX from `_FIRST_JAX` on."""


def check(jax: str | None = None, flax: str | None = None) -> None:
    """Refuse a pair of versions that is known to fail on import.

    Args:
      jax, flax: versions; the installed ones where not given.

    Raises:
      ImportError: one line that says what to install.
    """
    jax, flax = jax or _installed("jax"), flax or _installed("flax")
    if jax is None or flax is None:
        return
    if _numbers(jax) >= _FIRST_JAX and _numbers(flax) <= _LAST_FLAX:
        raise ImportError(
            f"flax {flax} does not import with jax {jax}: "
            'install an older jax (pip install "jax<0.11.1") or a newer flax'
        )


def installed(*packages: str) -> dict[str, str]:
    """Versions of those packages that are there, by name."""
    found = {name: _installed(name) for name in packages}
    return {name: version for name, version in found.items() if version is not None}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(DISTRIBUTION if package == "jspec" else package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.11.1rc2" gives (0, 11, 1)."""
    parts = (re.match(r"\d+", part) for part in version.split(".")[:3])
    return tuple(int(part[0]) for part in parts if part)
