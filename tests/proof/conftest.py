"""The tiny case of the certificate, shared by the proof tiers; and which rows are decoded alone."""

from collections.abc import Sequence

import pytest

from jspec.certify.proof import TinyCase
from jspec.certify.roster import Entry


def alone_and_together(entries: Sequence[Entry]) -> list:
    """Names and batch sizes.

    One of each method in a batch is for every run, all in batches and that one alone are `grid`,
    and the rest is `slow`.
    """
    cases, methods = [], set()
    for entry in sorted(entries, key=lambda entry: not entry.is_quick):
        is_first = entry.method not in methods
        methods.add(entry.method)
        together, alone = (
            ([], pytest.mark.grid) if is_first else (pytest.mark.grid, pytest.mark.slow)
        )
        cases.append(pytest.param(entry.name, 8, marks=together))
        cases.append(pytest.param(entry.name, 1, marks=alone))
    return cases


@pytest.fixture(scope="session")
def case() -> TinyCase:
    return TinyCase()
