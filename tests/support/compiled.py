"""Reads a compiled program: what it allocates, and which instructions make arrays of a given size.

XLA's text names, for every instruction, the type it produces and its operation. An array as large
as a cache or a weight may be passed on, viewed, or updated in place; anything else is a copy.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import jax
from jax.stages import Compiled

from jspec.state import Params

PASSED_ON = frozenset({"parameter", "get-tuple-element", "bitcast", "dynamic-update-slice"})
"""Operations that allocate nothing where their operand is not needed afterwards."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(ROOT )?%?[\w.\-]+ = [a-z]+\d+\[([\d,]*)\]\S* ([\w\-]+)\((?:.*calls=%?([\w.\-]+))?"
)


def makers(compiled: Compiled, n_elements: int) -> Counter[str]:
    """Operations that produce an array of so many elements, except where it is passed on.

    A fusion counts as the operation at its root, so that one which updates its operand in place
    is no copy.
    """
    roots: dict[str, str] = {}
    found: list[tuple[str, str | None]] = []
    computation = ""
    for line in (compiled.as_text() or "").splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            is_root, shape, operation, called = instruction.groups()
            if is_root:
                roots[computation] = operation
            if math.prod(int(size) for size in shape.split(",") if size) == n_elements:
                found.append((operation, called))
    operations = Counter(
        roots.get(called, operation) if operation == "fusion" and called else operation
        for operation, called in found
    )
    return Counter({name: n for name, n in operations.items() if name not in PASSED_ON})


def n_bytes(tree: Params) -> int:
    """Bytes of all arrays, abstract ones too."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
