import pytest

from jspec import versions


def test_installed_pair_works():
    versions.check()


@pytest.mark.parametrize(
    ("jax", "flax"),
    [("0.11.1", "0.12.8"), ("0.12.0", "0.12.8"), ("0.11.1rc1", "0.12.7"), ("1.0", "0.12.8")],
)
def test_pair_that_does_not_import_is_refused_in_one_line(jax, flax):
    with pytest.raises(ImportError) as caught:
        versions.check(jax, flax)
    message = str(caught.value)
    assert jax in message and flax in message and "pip install" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("jax", "flax"),
    [("0.10.2", "0.12.8"), ("0.11.0", "0.12.8"), ("0.11.1", "0.12.9"), ("0.12.1", "0.13.0")],
)
def test_other_pairs_are_taken(jax, flax):
    versions.check(jax, flax)
