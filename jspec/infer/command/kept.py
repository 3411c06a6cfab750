"""`--output FILE`: answers are kept as they come, and a run that was cut off goes on from there.

A line an answer, in the order in which they end: the record of `--json`, in front of it the
`position` of its prompt among all of them, and behind it `prompt_digest` and `run`, which say what
was answered and with what. A line is on the disk before the next answer is begun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from types import UnionType
from typing import Any

from jspec.config import LineConfig
from jspec.console.log import Failure, Log
from jspec.console.reader import Turn
from jspec.console.session import Models, path_of, weight_files
from jspec.console.signals import ask_to_stop
from jspec.errors import UserError
from jspec.hosts import agreed, are_joined, from_first, is_first
from jspec.infer.command.answering import Questions
from jspec.infer.command.compare import Comparison
from jspec.infer.command.report import answer_record
from jspec.infer.results import Generation, Stats
from jspec.records import RecordFile, whole_records

BEGINS = b'{"position": '
"""The first bytes of every line, however little of it a cut has left."""

PARTS: dict[str, type | UnionType] = {
    "position": int,
    "id": str | int,
    "turn": int,
    "tokens": list,
    "text": str | None,
    "stop_reason": str,
    "settings": dict,
    "prompt_digest": str,
    "run": dict,
}
"""What every line has, and of which type."""

EDGE = 2**16
"""Bytes of a weight file's ends that tell it from others of its size."""

_NO_MATTER = {
    *("target", "target_digest", "drafter_path", "drafters", "prompt"),
    *("batch_size", "rounds_per_chunk", "mesh"),
}
"""Fields that may differ from start to start: no text depends on them, or a digest says more."""


class Kept:
    """The answers of a file; on several hosts the first one reads and writes it.

    Args:
      path: the file, made where it is not there; None keeps nothing.
      questions: of this start.

    Attributes:
      unexcused: differences from plain decoding that earlier starts have found.
      failure: why nothing more is kept, where several hosts have to stop together.

    Raises:
      UserError: a file of other prompts or models, of something else, or of a run that still goes.
    """

    def __init__(self, path: Path | None, questions: Questions, log: Log):
        self.path, self.failure = path, None
        self._file: RecordFile | None = None
        self._turns = questions.turns
        self._made_with = made_with(questions.models) if path else {}
        records = agreed(lambda: self._open(path, log) if path and is_first() else [])
        records = from_first(records)
        self.unexcused = sum(record.get("unexcused", 0) for record in records)
        self._known = {(r["position"], r["turn"]): _generation(r) for r in records}

    def __len__(self) -> int:
        return len(self._known)

    def known(self, turn: Turn) -> Generation | None:
        """An answer of an earlier start."""
        return self._known.get((turn.position, turn.number))

    def add(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        """Write an answer; it is on the disk when this returns.

        Raises:
          Failure: it cannot be written; on several hosts that is kept, and all are asked to stop.
        """
        if self._file is None or self.failure is not None:
            return
        record = {
            "position": turn.position,
            **answer_record(turn, generation, comparison),
            "prompt_digest": _digest(self._turns[turn.position - 1]),
            "run": self._made_with,
        }
        try:
            self._file.append(record)
        except OSError as error:
            failure = Failure(
                f"{self.path} cannot be written ({error.strerror}); the answers in it are safe, "
                "and the same command goes on from there"
            )
            if not are_joined():
                raise failure from None
            self.failure = failure
            ask_to_stop()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path, log: Log) -> list[dict[str, Any]]:
        self._file = _opened(path)
        try:
            records, end = _records(path)
            for number, record in enumerate(records, start=1):
                self._check(record, f"{path}, line {number}")
        except UserError:
            self.close()
            raise
        if self._file.truncate(end):
            log.warning(f"{path}: the last line was cut short; its prompt is answered again")
        return records

    def _check(self, record: dict[str, Any], where: str) -> None:
        """Refuse an answer that this start would not give."""
        ours = self._made_with
        differ = [k for k in {**record["run"], **ours} if record["run"].get(k) != ours.get(k)]
        position = record["position"]
        turn = self._turns[position - 1] if 0 < position <= len(self._turns) else None
        if turn is not None:
            settings = _plain(turn.conversation.settings.model_dump())
            differ += [key for key in settings if record["settings"].get(key) != settings[key]]
        if differ:
            raise UserError(
                f"{where}: answered with other {', '.join(differ)}; give another --output, or the "
                "command that it was made with"
            )
        if turn is None or record["prompt_digest"] != _digest(turn):
            raise UserError(
                f"{where}: prompt {position} (id {record['id']!r}) was another one when it was "
                "answered; give another --output, or the same prompts, to which more may be added"
            )


def made_with(models: Models) -> dict[str, Any]:
    """What texts depend on beside prompts and their settings: digests of weights, config fields.

    Fields with their default value are left out, and long values are digests.
    """
    out = _NO_MATTER | set(LineConfig.model_fields)
    given = models.config.model_dump(mode="json", exclude=out, exclude_defaults=True)
    given["drafter"] = models.config.drafter
    found = {"target": _weights_digest(path_of(models.checkpoint))}
    for files in models.files.values():
        found["drafter_path"] = _weights_digest(path_of(files))
    return found | {name: _short(value) for name, value in given.items()}


def _opened(path: Path) -> RecordFile:
    """A file to append to, which no other run writes."""
    if str(path) == "-":
        raise UserError("--output -: expected a file; --json has the records on standard output")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"--output {path}: expected a file; it is something else")
        file = RecordFile(path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output {path}: cannot be written ({reason})") from None
    if not file.lock():
        file.close()
        raise UserError(
            f"--output {path}: another run is writing it; wait for its end, or give another file"
        )
    return file


def _records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All answers of a file, and where they end; behind that there is at most a line cut short."""
    known = list(whole_records(path))
    found, end = [record for record, _ in known], known[-1][1] if known else 0
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read()
    strange = next((i for i, each in enumerate(found) if not _is_answer(each)), len(found))
    is_cut = b"\n" not in rest and (bool(found) or rest[: len(BEGINS)] == BEGINS[: len(rest)])
    if strange < len(found) or not is_cut:
        raise UserError(
            f"{path}, line {strange + 1}: not an answer of jspec.infer; give another --output, or "
            "take the line out"
        )
    return found, end


def _is_answer(record: dict[str, Any]) -> bool:
    return all(isinstance(record.get(name), kind) for name, kind in PARTS.items())


def _generation(record: dict[str, Any]) -> Generation:
    return Generation(
        tokens=tuple(record["tokens"]),
        text=record.get("text"),
        stop_reason=record["stop_reason"],
        stats=Stats(),
    )


# --- digests -------------------------------------------------------------------------------------


def _digest(turn: Turn) -> str:
    """Digest a conversation as it was given, and its first prompt's tokens."""
    told = ("where", "settings")
    each = turn.conversation
    fields = {f.name: getattr(each, f.name) for f in dataclasses.fields(each) if f.name not in told}
    return _hash(repr((fields, turn.tokens)).encode())


def _weights_digest(directory: Path) -> str:
    """Digest a checkpoint: its configs, and the names, sizes and ends of its weight files."""
    parts = []
    for name in ("config.json", "generation_config.json"):
        with contextlib.suppress(OSError):
            parts.append((directory / name).read_bytes())
    for path in weight_files(directory):
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(EDGE)
            file.seek(max(size - EDGE, 0))
            parts.append(repr((path.name, size, _hash(first + file.read()))).encode())
    return _hash(b"\n".join(parts))


def _short(value: Any) -> Any:
    text = json.dumps(value)
    return value if len(text) <= 80 else _hash(text.encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
