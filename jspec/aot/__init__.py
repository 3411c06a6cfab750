"""Compiles the steps of a config ahead of time, for a TPU topology and on any computer.

`topology` finds the devices, `inference` and `training` make the steps of models that are shapes
only, `steps` compiles them; `hlo` and `moved` read the programs, and `report` tells what they need.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
