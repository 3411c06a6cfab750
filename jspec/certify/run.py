"""Runs the command: does the checks that are not done yet, keeps them, and tells all of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import jspec
from jspec.certify.certificate import (
    Certificate,
    Check,
    CheckRecord,
    CheckResult,
    facts_of_machine,
    record_of,
)
from jspec.certify.checks import all_checks
from jspec.certify.options import CertifyOptions
from jspec.certify.report import page_of, print_certificate
from jspec.certify.subject import Subject
from jspec.console.log import Failure, Log
from jspec.console.progress import Progress
from jspec.records import RecordFile, whole_records
from jspec.testing.programs import forget_when_many

NAME = "checks.jsonl"


def run(options: CertifyOptions, *, title: str, out: Path, as_json: bool) -> int:
    """Do all checks and write the certificate; returns 0 if all passed, else 1.

    Raises:
      UserError: found before anything has run.
    """
    log = Log()
    subject = Subject(options)
    checks = all_checks(subject)
    facts = facts_of(subject)
    asked = {
        "config": options.config.model_dump(mode="json"),
        "prompts": [list(tokens) for tokens in subject.prompts],
    }
    journal = CheckJournal(out, fingerprint_of(facts | asked))
    subject.keep = journal.keep
    if journal.starts_anew:
        log.note(f"{out} has checks of other settings, versions or sources: starting anew")
    elif journal.done:
        log.note(f"{len(journal.done)} of {len(checks)} checks are done already, in {out}")
    try:
        do_all(checks, journal, log)
    except KeyboardInterrupt:
        log.note(f"{len(journal.done)} of {len(checks)} checks are done; start again to go on")
        raise
    finally:
        records = tuple(journal.done[c.name] for c in checks if c.name in journal.done)
        certificate = Certificate(title=title, facts=facts, records=records, n_checks=len(checks))
        if records:
            write(certificate, out)
    if as_json:
        print(json.dumps(certificate.as_json()), flush=True)
    else:
        print_certificate(certificate, Console(highlight=False))
        sys.stdout.flush()
    log.note(f"written to {out / 'certificate.json'} and {out / 'certificate.html'}")
    return 0 if certificate.has_passed else 1


def facts_of(subject: Subject) -> dict[str, str]:
    """Tell what was certified, and where."""
    options, config = subject.options, subject.options.config
    digests = {name: digest or "unread" for name, digest in subject.models.digests().items()}
    return {
        "scope": "quick" if options.is_quick else "full",
        "target": str(config.target),
        "drafters": ", ".join(subject.models.drafters),
        "prompts": f"{len(subject.requests)} of {options.prompts or 'the built-in ones'}",
        "new tokens": str(options.max_new_tokens),
        "batch sizes": ", ".join(map(str, options.batch_sizes)),
        "workloads": "; ".join(
            f"{each}, T = {', '.join(f'{t:g}' for t in each.temperatures)}"
            for each in options.workloads
        ),
        "dtype": str(subject.models.types),
        "seed": str(config.seed),
        "source": source_digest()[:16],
        "weights": ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items()),
        **facts_of_machine(),
    }


def fingerprint_of(facts: dict[str, Any]) -> str:
    """Digest JSON values; equal facts, equal digest."""
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
    """Keeps records of one fingerprint in `checks.jsonl`, on disk before the next check starts.

    Parts of long checks are kept, too, so that a check that was cut off goes on with its next part.

    Attributes:
      done: records by the name of their check.
      parts: values by the name of their part.
      starts_anew: the folder has records of another fingerprint, which the first new one replaces.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.done: dict[str, CheckRecord] = {}
        self.parts: dict[str, Any] = {}
        self._path, self._fingerprint = folder / NAME, fingerprint
        lines = list(whole_records(self._path))
        for line, _ in lines:
            if line.get("fingerprint") == fingerprint and "part" in line:
                self.parts[line["part"]] = line["value"]
            elif line.get("fingerprint") == fingerprint:
                record = CheckRecord.model_validate(line["record"])
                self.done[record.name] = record
        is_ours = bool(self.done or self.parts)
        self.starts_anew = bool(lines) and not is_ours
        self._size = lines[-1][1] if is_ours else 0
        self._is_cut = False

    def add(self, record: CheckRecord) -> None:
        """Keep a record."""
        self._write({"record": record.as_json()})
        self.done[record.name] = record

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Give what is kept of a part; where there is nothing, make it and keep it.

        Args:
          make: returns a JSON value.
        """
        if name not in self.parts:
            value = json.loads(json.dumps(make()))
            self._write({"part": name, "value": value})
            self.parts[name] = value
        return self.parts[name]

    def _write(self, line: dict[str, Any]) -> None:
        """Write a line; what the file has beside those that are kept goes first."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(RecordFile(self._path)) as file:
                if not self._is_cut:
                    file.truncate(self._size)
                file.append({"fingerprint": self._fingerprint, **line})
        except OSError as error:
            raise Failure(f"{self._path} cannot be written ({error.strerror})") from None
        self._is_cut, self.starts_anew = True, False


def do_all(checks: Sequence[Check], journal: CheckJournal, log: Log) -> None:
    """Do what the journal has not; an interrupt loses the check in progress, nothing else."""
    pace = Progress(len(checks), "checks", done=sum(c.name in journal.done for c in checks))
    for number, check in enumerate(checks, start=1):
        if check.name in journal.done:
            continue
        with log.status(f"{number} of {len(checks)}: {check.name}"):
            record = do(check)
        journal.add(record)
        said = "passed" if record.has_passed else f"FAILED: {record.problems[0]}"
        pace()
        left = f" | {pace.words}" if pace.words else ""
        log.note(f"{number} of {len(checks)}, {record.seconds:.1f} s: {check.name} {said}{left}")
        forget_when_many()


def do(check: Check) -> CheckRecord:
    """Do one check. An error of its own is a failure: it has shown nothing."""
    started = time.perf_counter()
    try:
        found = check.run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        found = CheckResult(problems=(f"could not be done: {type(error).__name__}: {lines[0]}",))
    return record_of(check, found, time.perf_counter() - started)


def write(certificate: Certificate, out: Path) -> None:
    """Write `certificate.json` and `certificate.html`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(certificate.as_json(), indent=1) + "\n"
        (out / "certificate.json").write_text(text, encoding="utf-8")
        (out / "certificate.html").write_text(page_of(certificate), encoding="utf-8")
    except OSError as error:
        raise Failure(f"{out} cannot be written ({error.strerror})") from None
