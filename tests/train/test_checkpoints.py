"""Of all checkpoints the latest and the best stay, and another run's is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.errors import UserError
from jspec.train.checkpoints import Checkpoints
from jspec.train.step import TrainState


def state_of(value: float, **weights) -> TrainState:
    params = {"a": jnp.full((4, 2), value), "b": jnp.zeros((3,))} | weights
    return TrainState(params=params, moments=(params, {}), step=jnp.asarray(int(value), jnp.int32))


def save(checkpoints: Checkpoints, step: int, held_out: float | None) -> None:
    where = {"iterator": {"next_index": step, "nested": {"x": [1, "y"]}}}
    checkpoints.save(state_of(step), step=step, data=where, held_out=held_out)


def steps_in(directory: Path) -> set[int]:
    return {int(path.name) for path in directory.iterdir()}


def test_the_latest_and_the_best_are_kept_and_nothing_else(tmp_path):
    """Also those without a held-out loss, and with what an earlier process left."""
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None and checkpoints.best is None
        save(checkpoints, 1, None)
        save(checkpoints, 2, None)
        assert (checkpoints.latest, checkpoints.best) == (2, 2)
        save(checkpoints, 3, 5.0)
        save(checkpoints, 4, 4.0)
        save(checkpoints, 5, None)
        assert (checkpoints.latest, checkpoints.best) == (5, 4)
    assert steps_in(tmp_path) == {4, 5}
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (5, 4)
        assert checkpoints.held_out(4) == 4.0 and checkpoints.held_out(5) is None
        save(checkpoints, 6, 4.5)
        assert (checkpoints.latest, checkpoints.best) == (6, 4)
        save(checkpoints, 7, None)
        assert (checkpoints.latest, checkpoints.best) == (7, 4)
    assert steps_in(tmp_path) == {4, 7}
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 8, 3.0)
    assert steps_in(tmp_path) == {8}


def test_a_checkpoint_comes_back_with_its_data(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 7, 1.0)
        found, where = checkpoints.load(state_of(0), 7)
    assert where == {"iterator": {"next_index": 7, "nested": {"x": [1, "y"]}}}
    assert jax.tree.structure(found) == jax.tree.structure(state_of(7))
    for one, other in zip(*map(jax.tree.leaves, (found, state_of(7))), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


OTHERS = {
    "larger": {"a": jnp.zeros((5, 2))},
    "smaller": {"a": jnp.zeros((3, 2))},
    "transposed": {"a": jnp.zeros((2, 4))},
    "more weights": {"c": jnp.zeros((3,))},
}


@pytest.mark.parametrize("name", [*OTHERS, "fewer weights"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, name):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 7, 1.0)
        like = state_of(0, **OTHERS.get(name, {}))
        if name == "fewer weights":
            like = dataclasses.replace(like, moments=())
        with pytest.raises(UserError, match="checkpoint 7 does not fit this config") as caught:
            checkpoints.load(like, 7)
    assert "\n" not in str(caught.value)


def test_an_unfinished_checkpoint_is_none(tmp_path):
    """What a kill leaves in the middle of a write has a name of its own and is in nobody's way."""
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 1.0)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        save(checkpoints, 2, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == checkpoints.best == 2
