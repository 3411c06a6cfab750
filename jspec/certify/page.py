"""The certificate as one HTML file that needs nothing else: light and dark, narrow and wide."""

from __future__ import annotations

from jspec.certify.certificate import TIERS, Certificate, by_tier, outcome_of, tokens_of
from jspec.console.page import render


def page_of(certificate: Certificate) -> str:
    """Write the whole document, failures first."""
    failures = certificate.failures
    sections = {"Failures": failures} if failures else {}
    sections |= {TIERS[tier]: rows for tier, rows in by_tier(certificate.records).items()}
    return render(
        "jspec/certify/certificate.html.j2",
        certificate=certificate,
        kind="good" if certificate.has_passed else "bad" if failures else "wait",
        outcome_of=outcome_of,
        sections=sections,
        tokens_of=tokens_of,
    )
