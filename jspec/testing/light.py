"""Compiler options for programs that run a few times only."""

LIGHT = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""On CPU these compile four times as fast. For programs whose results are tested, not whose form:
results may differ from the usual ones in their last bits.
"""
