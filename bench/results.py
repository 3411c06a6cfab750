"""The file of a long measurement: records in JSON lines, kept when the run is cut off and resumed.

Every start adds a record of itself, and all starts of one file must have the same settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records import provenance

from jspec.errors import UserError


class Results:
    """What is known so far.

    Args:
      path: the file; made if it is not there. A broken last line is dropped.
      settings: what all starts have to share, JSON values.

    Raises:
      UserError: records of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path = path
        settings = json.loads(json.dumps(settings))
        self.records = _whole_records(path)
        for record in self.records:
            if record["kind"] == "start" and record["settings"] != settings:
                old = record["settings"]
                keys = [key for key in settings if settings[key] != old.get(key)]
                raise UserError(
                    f"{path} is of a run with other {', '.join(keys) or 'settings'}; "
                    "give another --out"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")
        self.add([{"kind": "start", **provenance(), "settings": settings}])

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep records together: after a cut there are all of them or none."""
        together = {"together": len(records)}
        records = json.loads(json.dumps([{**record, **together} for record in records]))
        self.records += records
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()
            os.fsync(file.fileno())


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without what a cut has left of the last ones."""
    whole: list[dict[str, Any]] = []
    group: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            group.append(json.loads(line))
        except ValueError:
            break
        if len(group) == group[-1]["together"]:
            whole, group = whole + group, []
    return whole
