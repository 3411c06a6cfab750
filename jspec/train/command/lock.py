"""Keeps two runs from one directory by a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jspec.errors import UserError
from jspec.hosts import agreed, is_first
from jspec.records import try_lock

LOCK_FILE = ".lock"


@contextlib.contextmanager
def only_run(out: Path, *, is_file: bool) -> Iterator[None]:
    """Hold the lock of `out`, a directory or a file; of several hosts the first one does.

    Raises:
      UserError: another run has it, and which; on all hosts.
    """
    path = out.with_name(f".{out.name}{LOCK_FILE}") if is_file else out / LOCK_FILE
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    descriptor = agreed(lambda: _acquire(path, out) if is_first() else None)
    try:
        yield
    finally:
        if descriptor is not None:
            # Removed while it is held: who has opened it meanwhile finds that it is gone.
            path.unlink(missing_ok=True)
            os.close(descriptor)
            with contextlib.suppress(OSError):  # nothing was written
                for folder in made:
                    folder.rmdir()


def _acquire(path: Path, out: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            is_mine = try_lock(descriptor)
            if is_mine and _is_at(descriptor, path):
                break
            said = os.pread(descriptor, 200, 0).decode(errors="replace").split()
            os.close(descriptor)
            if not is_mine:
                raise UserError(
                    f"another run ({_owner(said)}) is at work in {out}; wait for it, stop it, or "
                    "give another out"
                )
    except OSError as error:
        raise UserError(
            f"out: {out} cannot be written ({error.strerror}); give another one"
        ) from None
    with contextlib.suppress(OSError):  # on a full disk it is held without saying by whom
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
    return descriptor


def _owner(said: list[str]) -> str:
    number = said[0] if said else "?"
    is_here = len(said) < 2 or said[1] == socket.gethostname()
    return f"process {number}" if is_here else f"process {number} on {said[1]}"


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether the file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
