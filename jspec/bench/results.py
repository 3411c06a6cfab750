"""The file of a long measurement: records in JSON lines, kept when the run is cut off and resumed.

Records are added block by block, a block whole or not at all. Every record says which block it
belongs to, and has the provenance of the start that made it; the first one is of the settings,
which all starts of one file share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.records import RecordFile, whole_records

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
        self._provenance = _plain(provenance)
        self.records, size = _whole_blocks(path)
        if self.records:
            given = _plain({**settings, "provenance": self._provenance})
            _refuse_others(path, self.records[0], given)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RecordFile(path)
        self._file.truncate(size)
        if not self.records:
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
        self._file.append(*new)


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


def _whole_blocks(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of whole blocks, and the bytes of the file up to their end."""
    whole: list[dict[str, Any]] = []
    block: list[dict[str, Any]] = []
    size, is_ours = 0, not path.is_file() or path.read_bytes()[: len(BEGINS)] in (b"", BEGINS)
    for record, end in whole_records(path):
        is_ours = is_ours and {"block", "together", "kind"} <= set(record)
        block.append(record)
        if is_ours and len(block) == record["together"]:
            whole, block, size = whole + block, [], end
    if not is_ours:
        raise UserError(f"{path} is not a file of jspec.bench; give another --out")
    return whole, size
