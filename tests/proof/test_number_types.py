"""E1 and E2 where matrices have a type of their own: int8 under a float32 model, and bfloat16."""

import pytest

from jspec.certify import proof, reference, reference_checks
from jspec.certify.proof import TinyCase
from jspec.certify.roster import ROSTER, Entry
from jspec.checkpoints.number_types import QUANTISED
from jspec.testing.models import tiny_target, with_weights

LIGHT = {"int8": ("draft-model-tree", "falcon-4-reduced"), "bfloat16": ("draft-model-chain",)}
GRID = {
    "int8": ("prompt-lookup", "diffuspec-path", "easyspec-chain", "oracle-chain", "random-trees"),
    "bfloat16": ("falcon-tree", "diffuspec-path", "easyspec-tree"),
}
"""With `LIGHT`, one entry of each method for int8, and of few for bfloat16; others are `slow`."""


def entries(weights: str) -> list:
    def marks(name: str) -> list:
        if name in LIGHT[weights]:
            return []
        return [pytest.mark.grid if name in GRID[weights] else pytest.mark.slow]

    return [pytest.param(e, id=e.name, marks=marks(e.name)) for e in ROSTER]


@pytest.fixture(scope="module")
def cases() -> dict[str, TinyCase]:
    """A tied model, so that the table is looked up in that type too."""
    found = {}
    for weights in ("int8", "bfloat16"):
        case = found[weights] = TinyCase(batch_size=8)
        case.target = with_weights(tiny_target(has_tied_head=True), weights)
        case.requests = proof.mixed_requests(case.target, 8)
    return found


def check(case: TinyCase, entry: Entry) -> None:
    is_bitwise = entry.is_chain and entry.method != "none"
    found = (proof.bitwise if is_bitwise else proof.replayed)(case, entry.name, 8)
    assert found.problems == () and found.n_tokens > 100
    print(f"{entry.name}: {found.n_tokens} tokens, near-ties {found.near_ties}")


@pytest.mark.parametrize("entry", entries("int8"))
def test_every_drafter_says_what_a_quantised_target_says(cases, entry):
    check(cases["int8"], entry)


@pytest.mark.parametrize("entry", entries("bfloat16"))
def test_drafters_say_what_a_target_with_bfloat16_products_says(cases, entry):
    check(cases["bfloat16"], entry)


@pytest.mark.parametrize(
    ("weights", "tied"), [(weights, i % 2 == 0) for i, weights in enumerate(QUANTISED)]
)
def test_the_reference_has_the_very_values_of_a_quantised_target(weights, tied):
    target = with_weights(tiny_target(has_tied_head=tied), weights)
    requests = proof.mixed_requests(target, 4)
    results = proof.decode(target, requests, batch_size=4)
    config, values = target.model.config, reference.weights_in_memory(target)
    found = reference_checks.judged_by_reference(config, values, requests, results, "float32")
    assert found.problems == () and len(found.near_ties) <= 1
    # What was rounded on its way from a file is the same.
    plain = reference.weights_in_memory(tiny_target(has_tied_head=tied))
    again = reference.narrowed(plain, config, target.types, "float32")
    assert again.keys() == values.keys()
    assert all((again[name] == values[name]).all() for name in values)
