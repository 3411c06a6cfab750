"""Files of records: a JSON object a line, appended as it is made, safe against a kill.

A kill or a full disk can cut the last line short. A reader takes the whole lines in front of it; a
writer cuts it off before it appends. Every file of JSON lines that jspec writes is written here.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""Some network file systems have no locks; runs there have to keep apart by themselves."""


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


class RecordFile:
    """Appends records to a file, made where it is not there.

    Args:
      path: of the file.
      is_synced: records are on the disk when `append` returns; else a kill loses none of them, but
        a machine that goes down may. Syncing takes milliseconds, on some file systems more.

    Raises:
      OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, *, is_synced: bool = True):
        self._path, self._is_synced = path, is_synced
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    def lock(self) -> bool:
        """Keep other processes from locking the file; False where one has done so."""
        return try_lock(self._descriptor)

    def truncate(self, size: int) -> bool:
        """Cut off what is behind `size` bytes; returns whether there was anything."""
        is_longer = size < os.fstat(self._descriptor).st_size
        if is_longer:
            os.ftruncate(self._descriptor, size)
        return is_longer

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append records together, to their end.

        Raises:
          OSError: they cannot be written, with the file's name.
        """
        left = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            if self._is_synced:
                os.fsync(self._descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def close(self) -> None:
        """Close the file, and with it give its lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def try_lock(descriptor: int) -> bool:
    """Lock an open file as long as it is open; False where another process has locked it.

    Where a file system has no locks, every process gets one.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
