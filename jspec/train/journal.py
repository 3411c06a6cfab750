"""Keeps the journal of a run, `metrics.jsonl`: a line a step, and lines of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jspec.records import RecordFile, whole_records

FILE = "metrics.jsonl"


def read_journal(directory: Path) -> list[dict[str, Any]]:
    """Read all complete lines; a last line that a kill cut short is left out."""
    return [record for record, _ in whole_records(directory / FILE)]


def open_journal(directory: Path, *, step: int) -> RecordFile:
    """Open the journal to append to it, and take back what was written after `step`."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = [end for record, end in whole_records(directory / FILE) if record["step"] <= step]
    journal = RecordFile(directory / FILE, is_synced=False)
    journal.truncate(kept[-1] if kept else 0)
    return journal
