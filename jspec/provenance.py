"""Where and with what a result was made: commit, versions, processor, devices.

Every command tells it from here: `provenance` for records of measurements, `device_record` for the
devices, `run_record` for the summary of a run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from jspec.versions import installed

ROOT = Path(__file__).resolve().parents[1]
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
        "commit": commit(),
        "command": " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv)),
        "python": platform.python_version(),
        "versions": installed("jspec", "jax", "jaxlib", "flax", "numpy"),
        "processor": _processor(),
        "cores": _cores(),
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


def run_record() -> dict[str, Any]:
    """Tell where a run happened, in a few fields."""
    import jax

    devices = jax.devices()
    return {
        **installed("jspec", "jax"),
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": jax.process_count(),
    }


def commit() -> str | None:
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


def _cores() -> int | None:
    """Cores that this process may use; of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
