"""Writes files whole or not at all: beside their place first, then renamed to it.

What was there before stays until the new is complete, whatever happens: a kill, a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)

UNFINISHED = ".unfinished"


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with _naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def written_whole(directory: Path, *, last: str | None = None) -> Iterator[Path]:
    """Open a folder whose files go to `directory` together when all of them are written.

    Args:
      last: the file that tells that the others are there.
    """
    unfinished = directory / UNFINISHED
    with _naming(directory):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            files = sorted(unfinished.iterdir(), key=lambda file: (file.name == last, file.name))
            for file in files:
                _sync(file)
            for file in files:
                os.replace(file, directory / file.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def disk_error(error: BaseException, path: Path) -> OSError | None:
    """Turn an error of a full disk into Python's own, naming `path`; libraries have others."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename:
        return error
    for code in FULL:
        if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(path))
    return None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = disk_error(error, path)
        if full is None or full is error:
            raise
        raise full from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
