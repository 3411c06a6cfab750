"""Files of records: a JSON object a line, of which a kill may have cut the last one short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def whole_records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The records up to the first line that is cut short or is no JSON object.

    Yields:
      Each record with the bytes of the file up to its end, to truncate to; nothing of no file.
    """
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(record, dict):
                return
            yield record, end
