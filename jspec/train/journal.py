"""The journal of a run: `metrics.jsonl`, a line a step, and lines of evaluations between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jspec.records import whole_records
from jspec.train.files import append_line, write_whole

FILE = "metrics.jsonl"


def read_journal(directory: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a kill cut short is left out."""
    return [record for record, _ in whole_records(directory / FILE)]


class TrainingJournal:
    """Appends to the journal of a directory; silent where `is_writing` is False."""

    def __init__(self, directory: Path, *, step: int, is_writing: bool):
        """Opens the journal, and takes back what was written after `step`."""
        self._file = None
        if not is_writing:
            return
        path = directory / FILE
        kept = [record for record in read_journal(directory) if record["step"] <= step]
        write_whole(path, "".join(map(_line, kept)))
        self._file = path.open("ab", buffering=0)  # nothing waits for the next line, or for the end

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
          OSError: it cannot be written, with the file's name.
        """
        if self._file is not None:
            append_line(self._file, record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
