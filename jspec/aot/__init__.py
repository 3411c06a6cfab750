"""Compiles the steps of a config ahead of time, for a TPU topology and on any computer.

`topology` finds the devices, `compiling` and `training` make the steps of models that are shapes
only, `hlo` reads their programs and `report` says what they need.
"""

from typing import TYPE_CHECKING

from jspec.aot.compiling import Lowering, compile_step, inference_steps
from jspec.aot.hlo import Collectives, Instruction, collectives, read
from jspec.aot.report import Moved, ProgramMemory, StepReport
from jspec.aot.topology import Topology, find_topology
from jspec.aot.training import Recipe, find_recipe, training_steps
from jspec.lazy import submodules

__all__ = [
    "Collectives",
    "Instruction",
    "Lowering",
    "ProgramMemory",
    "Moved",
    "Recipe",
    "StepReport",
    "Topology",
    "collectives",
    "compile_step",
    "find_recipe",
    "find_topology",
    "inference_steps",
    "read",
    "training_steps",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
