"""A device and its links, as a plan sees them: bandwidth, floors, latencies, room.

In reading order: `Hardware`, how a record is read and written, the shipped ones (`SHIPPED`).

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493) name the terms, section 2.1. Differs: the paper
has no table of devices; the shipped records are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import Field, field_validator

from jspec.arguments import hint
from jspec.config import Config, field, read_yaml, resolve
from jspec.errors import UserError

GROWTH = 0.15
"""What a doubling of the devices adds to a collective, where only a constant is known."""

GATHER = 0.8
"""A small all-gather over a small all-reduce, where only the latter is known."""

Positive = Annotated[float, Field(gt=0)]
Devices = Annotated[int, Field(ge=2)]
Rows = Annotated[int, Field(ge=1)]
Latency = float | dict[Devices, Positive]


class Hardware(Config):
    """What a pass on this device takes is told from these numbers."""

    name: str = field("", "of the device", "a text")
    bandwidth: float = field(..., "of memory, bytes a second", "a positive number", gt=0)
    flops: float = field(math.inf, "of dense products, a second", "a positive number", gt=0)
    efficiency: float = field(
        1.0, "share of bandwidth and flops that is reached", "a number in (0, 1]", gt=0, le=1
    )
    memory: float = field(..., "of a device, bytes", "a positive number", gt=0)
    attention_floor: float = field(
        0.0, "seconds that no attention block goes below (kappa_A)", "seconds", ge=0
    )
    mlp_floor: float = field(0.0, "seconds that no MLP goes below (kappa_M)", "seconds", ge=0)
    all_reduce: Latency = field(
        0.0,
        "seconds of a small one: c of c (1 + 0.15 log2 devices), or by devices",
        "seconds, or devices and seconds as in {2: 1e-5, 8: 2e-5}",
    )
    all_gather: Latency | None = field(
        None, "the same; 0.8 of an all-reduce if not given", "as all_reduce"
    )
    rows: dict[Rows, Positive] = field(
        {1: 1.0},
        "time of a block over n rows, over one row, where it was measured",
        "rows and ratios as in {1: 1.0, 64: 1.2}",
        min_length=1,
    )
    context: int = field(
        0, "tokens of text that the attention's floor was measured with", "a number", ge=0
    )
    target: Hardware | None = field(
        None, "the same for the target's blocks, where these were measured apart", "such a record"
    )
    source: str = field("", "where the numbers are from, and which are assumed", "a text")

    @field_validator("all_reduce", "all_gather")
    @classmethod
    def _is_a_latency(cls, value: Latency | None) -> Latency | None:
        if isinstance(value, dict) and not value or isinstance(value, float) and value < 0:
            raise ValueError("no latency")
        return value

    @property
    def for_target(self) -> Hardware:
        """What the target's passes are told from."""
        return self.target or self

    def all_reduce_s(self, devices: int) -> float:
        """Seconds of a small all-reduce; 0 on one device."""
        return _latency(self.all_reduce, devices)

    def all_gather_s(self, devices: int) -> float:
        """Seconds of a small all-gather; 0 on one device."""
        if self.all_gather is None:
            return GATHER * self.all_reduce_s(devices)
        return _latency(self.all_gather, devices)

    def block_s(self, n_bytes: float, n_flops: float, rows: int, floor: float = 0.0) -> float:
        """Seconds to read weights once, or to compute with them if that takes longer.

        Args:
          rows: tokens that are computed with what is read.
          floor: seconds that one row takes at least.
        """
        known = sorted(self.rows)
        ratio = float(np.interp(rows, known, [self.rows[n] for n in known])) / self.rows[known[0]]
        one_row = max(n_bytes / (self.efficiency * self.bandwidth), floor)
        return max(one_row * ratio, n_flops / (self.efficiency * self.flops))


def _latency(known: Latency, devices: int) -> float:
    if devices <= 1:
        return 0.0
    if not isinstance(known, Mapping):
        return known * (1 + GROWTH * math.log2(devices))
    sizes = sorted(known)
    seconds = [known[n] for n in sizes]
    at_ends = float(np.interp(math.log2(devices), np.log2(sizes), seconds))
    beyond = 1 + GROWTH * math.log2(max(devices, sizes[-1])), 1 + GROWTH * math.log2(sizes[-1])
    return at_ends * beyond[0] / beyond[1]


def find_hardware(name_or_file: str) -> Hardware:
    """A shipped record, or one from YAML.

    Raises:
      UserError: neither, or a record that cannot be.
    """
    if name_or_file in SHIPPED:
        return SHIPPED[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise UserError(
            f"--hardware {name_or_file}: no such file, and not a shipped record; "
            f"{hint(name_or_file, (*SHIPPED, MEASURE))}"
        )
    values = read_yaml(path)
    for key in ("bandwidth", "memory"):
        if key not in values:
            raise UserError(f"--hardware {path}: no {key}; expected {', '.join(SHIPPED_KEYS)}")
    return resolve(Hardware, [(str(path), {"name": path.stem, **values})])


def write_hardware(hardware: Hardware, path: Path) -> None:
    """As YAML that `find_hardware` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(plain(hardware), sort_keys=False, default_flow_style=None)
    path.write_text(text, encoding="utf-8")


def plain(hardware: Hardware) -> dict:
    """The fields of a record that say something."""
    values = hardware.model_dump(exclude_defaults=True)
    return {name: values[name] for name in Hardware.model_fields if name in values}


MEASURE = "measure"
"""Named in place of a record: the devices at hand are."""

SHIPPED_KEYS = ("bandwidth", "memory", "flops", "attention_floor", "mlp_floor", "all_reduce")


def _device(
    name: str, source: str, bandwidth: float, flops: float, memory: float, latency: float
) -> Hardware:
    """A compiled engine on it, whose blocks cannot be shorter than a few kernels."""
    return Hardware(
        name=name,
        bandwidth=bandwidth,
        flops=flops,
        efficiency=0.8,
        memory=memory,
        attention_floor=24e-6,
        mlp_floor=12e-6,
        all_reduce=latency,
        source=f"{source}: bandwidth, flops (dense bfloat16) and memory; efficiency, floors and "
        "latency are assumed, not measured",
    )


_NVIDIA = "NVIDIA's data sheet, SXM with 80 GB"
_GOOGLE = "Google Cloud's page of the TPU"

SHIPPED = {
    one.name: one
    for one in (
        _device("a100", _NVIDIA, 2.039e12, 312e12, 80e9, 12e-6),
        _device("h100", _NVIDIA, 3.35e12, 989e12, 80e9, 9e-6),
        _device("v5e", _GOOGLE, 8.19e11, 197e12, 16e9, 5e-6),
        _device("v5p", _GOOGLE, 2.765e12, 459e12, 95e9, 5e-6),
        _device("v6e", _GOOGLE, 1.64e12, 918e12, 32e9, 5e-6),
        Hardware(
            name="paper",
            bandwidth=2.039e12,
            flops=312e12,
            efficiency=0.8,
            memory=80e9,
            attention_floor=615e-6,
            mlp_floor=266e-6,
            all_reduce=40e-6,
            source="eight A100 under the authors' engine: floors from their tables 2 and 9 "
            "(EasySpec), efficiency and latency assumed",
        ),
    )
}
"""By name."""
