"""Chooses compiler options for programs that run a few times only, or not at all.

    python -m jspec.testing.compile_options

prints the first as `XLA_FLAGS`. Options come and go with the compiler's version, and one that it
does not know ends the process. So the installed compiler is asked, and only what it knows is set.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

from jspec.ops.jit import known

_LIGHT: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}

_USUAL_FORM = _LIGHT | {"xla_cpu_use_fusion_emitters": True}


@functools.cache
def light() -> dict[str, Any]:
    """Give options under which programs compile two to five times as fast on CPU.

    For programs whose results are tested, not whose form: results may differ from the usual ones in
    their last bits.
    """
    return known(_LIGHT)


@functools.cache
def usual_form() -> dict[str, Any]:
    """Give options that keep XLA's own instructions and buffers, for tests of these.

    Only the machine code that is made of them is compiled fast.
    """
    return known(_USUAL_FORM)


def jit_light(function: Callable, **options) -> Callable:
    """`jax.jit` under `light()`. The compiler is asked at the first call, not on import."""

    @functools.cache
    def jitted() -> Callable:
        return jax.jit(function, compiler_options=light(), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return jitted()(*args, **kwargs)

    return call


def xla_flags(options: dict[str, Any]) -> str:
    """Write options for all programs of a process, as `XLA_FLAGS` wants them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def light_flags() -> str:
    """Ask a process of its own for the `XLA_FLAGS` of `light()`.

    For a process that sets them for itself: asking the compiler makes it read `XLA_FLAGS`, and it
    reads them once.
    """
    command = [sys.executable, "-m", "jspec.testing.compile_options"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(xla_flags(light()))
