"""What is done is kept: records in a file, under a fingerprint of everything that could matter."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jspec
from jspec.certify.records import Record
from jspec.console.log import Failure

NAME = "checks.jsonl"


def fingerprint_of(facts: dict[str, Any]) -> str:
    """A digest of JSON values; equal facts, equal digest."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def source_digest() -> str:
    """Digest every Python file of the package, with its place."""
    package = Path(jspec.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode("utf-8") + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class CheckJournal:
    """Records of one fingerprint in `checks.jsonl`; each is on disk before the next check starts.

    Attributes:
      done: records by the name of their check.
      starts_anew: the folder has records of another fingerprint, which the first new one replaces.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.done: dict[str, Record] = {}
        self._path = folder / NAME
        self._fingerprint = fingerprint
        lines = self._lines()
        for line in lines:
            if line.get("fingerprint") == fingerprint:
                record = Record.from_json(line["record"])
                self.done[record.name] = record
        self.starts_anew = bool(lines) and not self.done

    def add(self, record: Record) -> None:
        """Write a record, whole or not at all as far as a reader is concerned."""
        line = {"fingerprint": self._fingerprint, "record": record.as_json()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A line that was cut off stays alone: the next one starts on a line of its own.
            is_torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")
            with open(self._path, "w" if self.starts_anew else "a", encoding="utf-8") as file:
                file.write(("\n" if is_torn else "") + json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Failure(f"{self._path} cannot be written ({error.strerror})") from None
        self.starts_anew = False
        self.done[record.name] = record

    def _lines(self) -> list[dict[str, Any]]:
        """Whole lines; one that was cut off is not there."""
        if not self._path.exists():
            return []
        found = []
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "record" in line:
                found.append(line)
        return found
