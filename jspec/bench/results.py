"""The file of a long measurement: records in JSON lines, kept when the run is cut off and resumed.

Records are added block by block, a block whole or not at all. Every record says which block it
belongs to, and has the provenance of the start that made it; the first one is of the settings,
which all starts of one file share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.records import whole_records

Record = Mapping[str, Any]

BEGINS = b'{"kind": "settings"'
"""The first bytes of a file, however little of it a cut has left."""

SAME_PROVENANCE = ("versions", "device", "processor", "cores", "dtype", "seed")
"""Fields that two starts must share; commits and commands may differ."""


class Results:
    """What is known so far.

    Args:
      path: the file; made if it is not there. What a cut has left of a block is dropped.
      settings: what all starts have to share, the settings record without its provenance.
      provenance: of this start.

    Raises:
      UserError: records of other settings, or a file of something else.
    """

    def __init__(self, path: Path, settings: Record, provenance: Record):
        self._path = path
        self._provenance = _plain(provenance)
        self.records = _whole_records(path)
        given = _plain({**settings, "provenance": self._provenance})
        if self.records:
            _refuse_others(path, self.records[0], given)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.add("settings", [settings])

    def has(self, block: str) -> bool:
        """Whether a block's records are known."""
        return any(record["block"] == block for record in self.records)

    def add(self, block: str, records: Sequence[Record]) -> None:
        """Keep the records of a block: after a cut there are all of them or none."""
        assert records, f"{block} left no record, and would run again with every start"
        more = {"block": block, "together": len(records), "provenance": self._provenance}
        new = [_plain({**record, **more}) for record in records]
        self.records += new
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in new))
            file.flush()
            os.fsync(file.fileno())


def _plain(record: Record) -> dict[str, Any]:
    return json.loads(json.dumps(record))


def _refuse_others(path: Path, known: Record, given: Record) -> None:
    old, new = known.get("provenance", {}), given["provenance"]
    keys = [key for key in given if key != "provenance" and given[key] != known.get(key)]
    keys += [key for key in SAME_PROVENANCE if new.get(key) != old.get(key)]
    if keys:
        raise UserError(
            f"{path} is of a run with other {', '.join(keys)}; give another --out, or the settings "
            "that it was made with"
        )


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, which afterwards has no others: a cut block is taken out of it."""
    if not path.is_file():
        return []
    whole: list[dict[str, Any]] = []
    group: list[dict[str, Any]] = []
    size = 0
    for record, end in whole_records(path):
        if not {"block", "together", "kind"} <= set(record):
            raise UserError(f"{path} is not a file of jspec.bench; give another --out")
        group.append(record)
        if len(group) == record["together"]:
            whole, group, size = whole + group, [], end
    with path.open("rb") as file:
        begins = file.read(len(BEGINS))
    if begins and not whole and begins != BEGINS:
        raise UserError(f"{path} is not a file of jspec.bench; give another --out")
    if size < path.stat().st_size:
        os.truncate(path, size)
    return whole
