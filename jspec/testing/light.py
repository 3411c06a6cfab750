"""Compiler options for programs that run a few times only, and the usual ones."""

from __future__ import annotations

from typing import Any

LIGHT: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""On CPU these compile three to five times as fast. For programs whose results are tested, not
whose form: results may differ from the usual ones in their last bits.
"""

USUAL: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}
"""What XLA does by itself: for programs whose form is tested."""


def xla_flags(options: dict[str, Any]) -> str:
    """The same for all programs of a process, as `XLA_FLAGS` wants it."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())
