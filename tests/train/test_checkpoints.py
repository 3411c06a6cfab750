"""Of all checkpoints the latest and the best stay, and another run's is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.errors import UserError
from jspec.train import checkpoints as checkpoints_module
from jspec.train.checkpoints import Checkpoints
from jspec.train.step import TrainState


def state_of(value: float, **weights) -> TrainState:
    params = {"a": jnp.full((4, 2), value), "b": jnp.zeros((3,))} | weights
    return TrainState(params=params, moments=(params, {}), step=jnp.asarray(int(value), jnp.int32))


def save(checkpoints: Checkpoints, step: int, held_out: float | None, **weights) -> None:
    where = {"iterator": {"next_index": step, "nested": {"x": [1, "y"]}}}
    checkpoints.save(state_of(step, **weights), step=step, data=where, held_out=held_out)


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
    "more weights": {"c": jnp.zeros((3,))},
}


@pytest.mark.parametrize("name", ["larger", "more weights", "fewer weights"])
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


def cut(pattern: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        for path in checkpoint.glob(pattern):
            os.truncate(path, path.stat().st_size // 2)

    return damage


def drop(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut short": cut("state/ocdbt.process_0/d/*"),
    "an index cut short": cut("state/d/*"),
    "metadata gone": drop("state/_METADATA"),
    "metadata of arrays cut short": cut("state/array_metadatas/*"),
    "place in the data gone": drop("data/_METADATA"),
    "metrics cut short": cut("metrics/metrics"),
    "no files": empty,
}


LARGE = {"a": jnp.linspace(0.0, 1.0, 20_000).reshape(200, 100)}
"""Weights in files of their own; smaller ones are kept in an index."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoint 4, the best, and 6, the latest."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        save(checkpoints, 4, 1.0, **LARGE)
        save(checkpoints, 6, 2.0, **LARGE)
    return directory


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_told_with_the_way_on(saved, tmp_path, name, capfd):
    """And what is told works: without it, the one before it is the latest."""
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    DAMAGES[name](directory / "6")
    with pytest.raises(UserError) as caught:
        with Checkpoints(directory) as checkpoints:
            assert checkpoints.latest == 6
            checkpoints.load(state_of(0, **LARGE), 6)
    assert str(caught.value) == (
        f"{directory}: checkpoint 6 is damaged; remove it (rm -r {directory / '6'}), and resuming "
        "goes on from step 4"
    )
    assert capfd.readouterr().err == ""  # nothing of what Orbax has to say
    shutil.rmtree(directory / "6")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest == 4
        found, _ = checkpoints.load(state_of(0, **LARGE), 4)
    assert int(found.step) == 4


class Abandoned:
    def __del__(self):
        raise RuntimeError("Event loop is closed")


def test_what_orbax_leaves_behind_a_failed_load_is_not_shown(saved, monkeypatch, capsys):
    """Its tasks end when they like: some print, others cannot even raise."""
    unraisable = []

    def fail(*_) -> None:
        Abandoned()
        print("Event loop is closed", file=sys.stderr)
        raise ValueError("no such chunk")

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "load_checkpointables", fail)
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        with pytest.raises(UserError, match="does not fit"):
            checkpoints.load(state_of(0), 6)
    assert capsys.readouterr().err == "" and not unraisable


def test_where_the_only_checkpoint_is_damaged_the_run_begins_anew(saved, tmp_path):
    directory = tmp_path / "run" / "checkpoints"
    shutil.copytree(saved, directory)
    shutil.rmtree(directory / "4")
    empty(directory / "6")
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(UserError, match=f"no other is left: remove {directory.parent}, or"):
            checkpoints.load(state_of(0, **LARGE), 6)


def test_of_several_others_the_newest_is_gone_on_from():
    """A kill may have left more than the latest and the best."""
    told = str(checkpoints_module._damaged(Path("run/checkpoints"), 6, [2, 6, 4]))
    assert told.endswith("remove it (rm -r run/checkpoints/6), and resuming goes on from step 4")


def no_room(*_, **__) -> None:
    raise ValueError("Failed to write 15 bytes: No space left on device [source locations ...]")


def test_a_full_disk_is_pythons_own_error_and_names_the_directory(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", no_room)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save(checkpoints, 1, None)
    assert caught.value.filename == str(tmp_path)


def test_what_could_not_be_written_at_the_end_is_told_unless_something_else_is(
    tmp_path, monkeypatch
):
    for error, expected in ((None, OSError), (KeyboardInterrupt, KeyboardInterrupt)):
        with pytest.raises(expected), Checkpoints(tmp_path) as checkpoints:
            checkpoints._orbax.close()
            monkeypatch.setattr(checkpoints._orbax, "close", no_room)
            if error is not None:
                raise error
