"""What every record of a measurement starts with, and how spread is told."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.versions import installed

ROOT = Path(__file__).resolve().parents[2]
"""The folder above the package: that of a checkout, where it is one."""

DATA_SHEET_GB_PER_S = {
    "H100 PCIe": 2039,
    "H100 NVL": 3938,
    "H100": 3350,
    "H200": 4800,
    "A100-SXM4-80GB": 2039,
    "L40S": 864,
}
"""Memory bandwidth by a part of the device's name; the first that fits counts."""


def provenance() -> dict[str, Any]:
    """Where and with what a measurement was made."""
    return {
        "commit": _commit(),
        "command": " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv)),
        "python": platform.python_version(),
        "versions": installed("jspec", "jax", "jaxlib", "flax", "numpy"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def device_record() -> dict[str, Any]:
    """What the machine says of itself."""
    import jax

    device = jax.devices()[0]
    sheet = (gb for part, gb in DATA_SHEET_GB_PER_S.items() if part in device.device_kind)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": len(jax.devices()),
        "data_sheet_GB_per_s": next(sheet, None),
        "driver": _driver(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and how many."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def _commit() -> str | None:
    """The commit of the checkout, marked where tracked files differ from it."""
    if not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        if name.returncode:
            return None
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:
        return None
    return name.stdout.strip() + ("+changes" if changes.returncode else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str | None:
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        ran = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return ran.stdout.strip() or None
