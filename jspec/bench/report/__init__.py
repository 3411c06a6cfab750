"""The report of a measurement: one HTML page that needs nothing beside itself.

In reading order: `page` (the sections), `headline`, `tables`, `plots` (what each picture shows)
over `bars`, `curves` and `axes` (how it is drawn), `picture` (the tokens), `colours`, `markup`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jspec.bench.report.page import page

__all__ = ["write"]


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Write the page of a run's records; what was not measured is left out of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(records), encoding="utf-8")
