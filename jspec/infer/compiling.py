"""Counts what JAX traces, lowers and compiles, so that "nothing after warm-up" is a fact."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass
class CompileCounts:
    """Running totals of this process since the first use of `compile_counts`."""

    traces: int = 0
    lowerings: int = 0
    compilations: int = 0
    seconds: float = 0.0

    def copy(self) -> CompileCounts:
        return dataclasses.replace(self)

    def since(self, earlier: CompileCounts) -> CompileCounts:
        return CompileCounts(
            traces=self.traces - earlier.traces,
            lowerings=self.lowerings - earlier.lowerings,
            compilations=self.compilations - earlier.compilations,
            seconds=self.seconds - earlier.seconds,
        )


_counts: CompileCounts | None = None


def compile_counts() -> CompileCounts:
    """A copy of the totals. The first call starts the counting."""
    global _counts
    if _counts is None:
        _counts = CompileCounts()
        jax.monitoring.register_event_duration_secs_listener(_listen)
    return _counts.copy()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    assert _counts is not None
    if event.endswith("/jaxpr_trace_duration"):
        _counts.traces += 1
    elif event.endswith("/jaxpr_to_mlir_module_duration"):
        _counts.lowerings += 1
    elif event.endswith("/backend_compile_duration"):
        _counts.compilations += 1
    else:
        return
    _counts.seconds += duration_secs
