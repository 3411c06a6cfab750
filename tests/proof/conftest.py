"""The tiny case of the certificate, shared by the proof tiers."""

import pytest

from jspec.certify import tiny


@pytest.fixture(scope="session")
def case() -> tiny.Case:
    return tiny.make_case()
