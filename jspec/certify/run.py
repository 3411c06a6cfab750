"""One run of the command: what is not done yet is done, and all of it is told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jspec.certify.certificate import Certificate, facts_of_machine
from jspec.certify.checks import all_checks
from jspec.certify.journal import CheckJournal, fingerprint_of, source_digest
from jspec.certify.page import page_of
from jspec.certify.records import Check, CheckResult, Record, record_of
from jspec.certify.report import print_certificate
from jspec.certify.subject import CertifyOptions, Subject
from jspec.console.log import Failure, Log
from jspec.console.progress import Progress
from jspec.testing.programs import forget_when_many


def run(asked: CertifyOptions, *, title: str, out: Path, is_quick: bool, as_json: bool) -> int:
    """Do all checks and write the certificate; returns 0 if all passed, else 1.

    Raises:
      UserError: found before anything has run.
    """
    log = Log()
    subject = Subject(asked)
    machine = facts_of_machine()
    checks = all_checks(subject, is_quick=is_quick)
    facts = _facts(asked, subject, machine, is_quick)
    journal = CheckJournal(out, fingerprint_of(facts))
    if journal.starts_anew:
        log.note(f"{out} has checks of other settings, versions or sources: starting anew")
    elif journal.done:
        log.note(f"{len(journal.done)} of {len(checks)} checks are done already, in {out}")
    told = {name: str(value) for name, value in facts.items() if name not in _NOT_TOLD}
    try:
        do_all(checks, journal, log)
    except KeyboardInterrupt:
        log.note(f"{len(journal.done)} of {len(checks)} checks are done; start again to go on")
        raise
    finally:
        certificate = Certificate(
            title=title,
            facts=told,
            records=tuple(journal.done[c.name] for c in checks if c.name in journal.done),
            n_checks=len(checks),
        )
        if certificate.records:
            write(certificate, out)
    if as_json:
        print(json.dumps(certificate.as_json()), flush=True)
    else:
        print_certificate(certificate, Console(highlight=False))
        sys.stdout.flush()
    log.note(f"written to {out / 'certificate.json'} and {out / 'certificate.html'}")
    return 0 if certificate.has_passed else 1


_NOT_TOLD = ("config", "requests")


def _facts(
    asked: CertifyOptions, subject: Subject, machine: dict[str, str], is_quick: bool
) -> dict[str, Any]:
    """Everything that could change what a check finds."""
    return {
        "scope": "quick" if is_quick else "full",
        "target": str(asked.config.target),
        "drafters": ", ".join(subject.models.drafters),
        "prompts": f"{len(subject.requests)} of {asked.prompts or 'the built-in ones'}",
        "new tokens": asked.max_new_tokens,
        "batch sizes": ", ".join(map(str, asked.batch_sizes)),
        "dtype": asked.config.dtype,
        "seed": asked.config.seed,
        "source": source_digest()[:16],
        "weights": ", ".join(f"{name} {digest[:12]}" for name, digest in subject.digests.items()),
        **machine,
        "config": asked.config.model_dump(mode="json"),
        "requests": [list(request.tokens) for request in subject.requests],
    }


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


def do(check: Check) -> Record:
    """One check. An error of its own is a failure: it has shown nothing."""
    started = time.perf_counter()
    try:
        found = check.run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        found = CheckResult(problems=(f"could not be done: {type(error).__name__}: {lines[0]}",))
    return record_of(check, found, time.perf_counter() - started)


def write(certificate: Certificate, out: Path) -> None:
    """`certificate.json` and `certificate.html`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(certificate.as_json(), indent=1) + "\n"
        (out / "certificate.json").write_text(text, encoding="utf-8")
        (out / "certificate.html").write_text(page_of(certificate), encoding="utf-8")
    except OSError as error:
        raise Failure(f"{out} cannot be written ({error.strerror})") from None
