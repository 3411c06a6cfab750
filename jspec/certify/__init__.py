"""The losslessness certificate: `python -m jspec.certify`.

In reading order: `roster` has the drafters; `proof` (E1, E2), `float64` (E3), `exact_law` (E4),
`reference_checks` and `walk_check` what they are compared with; `subject` the models of a config;
`faults` what is planted. `checks` names all of it, `run` does it, and `certificate` and `report`
tell it.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
