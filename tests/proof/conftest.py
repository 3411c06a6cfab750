"""The tiny case of the certificate, shared by the proof tiers; and which rows are decoded alone."""

from collections.abc import Sequence

import pytest

from jspec.certify.proof import TinyCase
from jspec.certify.roster import Entry


def alone_and_together(entries: Sequence[Entry]) -> list:
    """Names and batch sizes: all in batches, and one of each method alone; the rest is `grid`."""
    batches = [pytest.param(entry.name, 8) for entry in entries]
    methods: set[str] = set()
    for entry in sorted(entries, key=lambda entry: not entry.is_quick):
        marks = [pytest.mark.grid] if entry.method in methods else []
        batches.append(pytest.param(entry.name, 1, marks=marks))
        methods.add(entry.method)
    return batches


@pytest.fixture(scope="session")
def case() -> TinyCase:
    return TinyCase()
