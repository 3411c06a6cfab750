"""Compiles the steps of a config ahead of time, for a TPU topology and on any computer.

`topology` finds the devices, `shapes` the models without their weights, `compiling` and `training`
make the steps, `hlo` reads their programs and `report` says what they need.
"""

from jspec.aot.compiling import Lowering, compile_step, inference_steps
from jspec.aot.hlo import Collectives, Instruction, collectives, read
from jspec.aot.report import Memory, Moved, StepReport
from jspec.aot.shapes import Found, drafter_shapes, find_shapes, target_shapes
from jspec.aot.topology import Topology, find_topology
from jspec.aot.training import Recipe, find_recipe, training_steps

__all__ = [
    "Collectives",
    "Found",
    "Instruction",
    "Lowering",
    "Memory",
    "Moved",
    "Recipe",
    "StepReport",
    "Topology",
    "collectives",
    "compile_step",
    "drafter_shapes",
    "find_recipe",
    "find_shapes",
    "find_topology",
    "inference_steps",
    "read",
    "target_shapes",
    "training_steps",
]
