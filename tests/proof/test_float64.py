"""E3: float64, tiny models, in a process with x64 on: strictly equal over drafters and meshes."""

from jspec.certify import float64


def test_float64_is_strictly_equal_on_one_two_and_eight_devices():
    found = float64.strictly_equal()
    assert found.problems == ()
    assert found.n_tokens > 300
