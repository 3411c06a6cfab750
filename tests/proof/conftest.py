"""A target, mixed requests and what plain decoding says to them; shared by the proof tiers."""

import dataclasses

import pytest

from jspec.certify import proof
from jspec.infer.request import Request, Result
from jspec.models.target import Target
from jspec.testing.models import tiny_target


@dataclasses.dataclass(frozen=True)
class Case:
    target: Target
    requests: list[Request]
    plain: list[Result]

    @property
    def texts(self):
        return proof.texts_of(self.requests, self.plain)


@pytest.fixture(scope="session")
def case() -> Case:
    target = tiny_target()
    requests = proof.mixed_requests(target, 24)
    return Case(target, requests, proof.decode(target, requests, batch_size=1))
