"""Stored features are those of the step, whatever happened while they were written."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.sharding import make_training_mesh
from jspec.train import features as features_module
from jspec.train.data import TextData
from jspec.train.features import (
    DTYPE,
    Stopped,
    WithFeatures,
    computing,
    model_key,
    packed_digest,
    store,
    with_features,
)
from jspec.train.objective import NextToken
from jspec.train.packing import Packed
from tests.support.training import (
    LENGTH,
    falcon_parts,
    loop_config,
    random_packed,
    random_text,
    random_weights,
    run_training,
    told,
    training_model,
)

MODEL = training_model()
WIDTH = MODEL.config.width


def token_features(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Features that tell the token and its place."""
    tokens = batch["tokens"].astype(np.float32)[..., None]
    return np.concatenate([tokens, batch["positions"][..., None], 0 * tokens], axis=-1)


def expected(packed: Packed) -> np.ndarray:
    return token_features(packed.arrays).astype(DTYPE)


def read(path: Path, packed: Packed) -> np.ndarray:
    return np.fromfile(path, DTYPE).reshape(len(packed), packed.length, 3)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_a_file_has_the_features_of_every_sequence(at_once, tmp_path):
    packed, path = random_packed(20, seed=0), tmp_path / "folder/a.features"
    sizes = set()

    def compute(batch):
        sizes.add(len(batch["tokens"]))
        return token_features(batch)

    store(path, packed, compute, 3, at_once)
    assert sizes == {at_once} and [file.name for file in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(read(path, packed), expected(packed))
    store(path, packed, lambda batch: pytest.fail("it is there"), 3, at_once)


def test_what_was_begun_is_gone_on_with(tmp_path):
    """Whole sequences are kept, half of one is computed again."""
    packed, path = random_packed(20, seed=0), tmp_path / "a.features"
    seen = []

    def compute(batch):
        seen.append(batch["tokens"])
        return token_features(batch)

    with pytest.raises(Stopped):
        store(path, packed, compute, 3, 2, should_stop=lambda: len(seen) == 3)
    assert not path.exists()
    [unfinished] = tmp_path.iterdir()
    with unfinished.open("ab") as file:
        file.write(b"half of one")
    store(path, packed, compute, 3, 2)
    assert sum(map(len, seen)) == len(packed) + len(packed) % 2
    np.testing.assert_array_equal(read(path, packed), expected(packed))


def test_the_first_few_are_enough_for_part_of_a_corpus(tmp_path):
    """A later run that needs more goes on; one that needs fewer computes nothing."""
    packed, path, seen = random_packed(20, seed=0), tmp_path / "a.features", []

    def compute(batch):
        seen.append(len(batch["tokens"]))
        return token_features(batch)

    store(path, packed, compute, 3, 1, first=2)
    assert path.stat().st_size == 2 * packed.length * 3 * 2 and len(seen) == 2
    store(path, packed, compute, 3, 1, first=1)
    assert len(seen) == 2
    store(path, packed, compute, 3, 1)
    assert len(seen) == len(packed)
    np.testing.assert_array_equal(read(path, packed), expected(packed))


def test_another_run_waits_and_reads_what_the_first_wrote(tmp_path):
    packed, path, notes = random_packed(20, seed=0), tmp_path / "a.features", []
    ready = threading.Event()

    def slow(batch):
        ready.set()
        time.sleep(0.2)
        return token_features(batch)

    other = threading.Thread(target=store, args=(path, packed, slow, 3, 4))
    other.start()
    assert ready.wait(30)
    store(path, packed, lambda batch: pytest.fail("two write"), 3, 4, note=notes.append)
    other.join(30)
    assert "another run computes features" in notes[0]
    np.testing.assert_array_equal(read(path, packed), expected(packed))


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "EVERY_S", 0.0)
    packed, notes = random_packed(20, seed=0), []
    store(tmp_path / "a.features", packed, token_features, 3, 4, note=notes.append)
    assert f"4 of {len(packed)} sequences" in notes[0] and "min left" in notes[0]


def test_sequences_are_named_by_what_decides_their_features():
    first, again = random_packed(20, seed=0), random_packed(20, seed=0)
    assert packed_digest(first) == packed_digest(again)
    others = [random_packed(20, seed=1), random_packed(20, seed=0, length=LENGTH + 1)]
    assert len({packed_digest(packed) for packed in (first, *others)}) == 3
    weightless = Packed(first.codes & ~1, first.length, first.pieces, first.ends)
    assert packed_digest(weightless) == packed_digest(first)
    keys = {model_key(*pair) for pair in (("a", "x"), ("b", "x"), ("a", "y"))}
    assert len(keys) == 3


def stored(data: TextData, model, params, folder: Path, mesh: Any = None) -> TextData:
    mesh = mesh or make_training_mesh(devices=jax.devices()[:1])
    compute = computing(model, params, mesh)
    width = model.config.width
    return with_features(data, compute, folder, key="k", width=width, at_once=4)


def n_stored(packed: Any) -> int:
    """Sequences that have features; none where there are no sequences."""
    return len(packed.features) if len(packed) else 0


def test_features_are_computed_of_what_an_epoch_has(tmp_path):
    data, params = random_text(), random_weights(MODEL)
    halved = dataclasses.replace(data, repeats=dict.fromkeys(data.train, 0.5))
    given = stored(halved, MODEL, params, tmp_path)
    for name, packed in data.train.items():
        assert n_stored(given.train[name]) == round(len(packed) * 0.5)
    for name, packed in data.tests.items():
        assert n_stored(given.tests[name]) == len(packed)
    whole = stored(data, MODEL, params, tmp_path)
    for name, packed in data.train.items():
        assert n_stored(whole.train[name]) == len(packed)
    assert given.n_sequences < whole.n_sequences


def test_batches_have_the_features_of_their_sequences(tmp_path):
    data, params = random_text(), random_weights(MODEL)
    found = stored(data, MODEL, params, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert found.n_tokens == data.n_tokens
    plain = next(data.iterator(batch_size=4, seed=3))
    batch = next(found.iterator(batch_size=4, seed=3))
    for name, array in plain.items():
        np.testing.assert_array_equal(batch[name], array)
    compute = computing(MODEL, params, make_training_mesh(devices=jax.devices()[:1]))
    np.testing.assert_array_equal(batch["features"], compute(plain))
    assert batch["features"].dtype == DTYPE
    for name, held_out in found.held_out().items():
        assert isinstance(found.tests[name], WithFeatures)
        assert held_out["features"].shape == (*held_out["tokens"].shape, WIDTH)


def test_a_mesh_computes_the_same(tmp_path):
    data, params = random_text(), random_weights(MODEL)
    mesh = make_training_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    one, four = (
        stored(data, MODEL, params, tmp_path / str(number), mesh=mesh)
        for number, mesh in enumerate((None, mesh))
    )
    for name in data.train:
        ours, theirs = (
            np.asarray(each.train[name].arrays["features"], np.float32) for each in (one, four)
        )
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "kind", ["falcon", *(pytest.param(k, marks=pytest.mark.grid) for k in ("model", "diffusion"))]
)
def test_a_training_is_the_same_but_for_rounding(kind, tmp_path):
    config = loop_config()
    data, options = random_text(), {}
    if kind == "model":
        frozen: Any = random_weights(MODEL, 1)
        options = {"objective": NextToken(MODEL, teacher=MODEL), "frozen": frozen}
    elif kind == "falcon":
        frozen = falcon_parts(config)[1].frozen
    else:
        from tests.support.training import diffusion_parts

        frozen = diffusion_parts(config)[1].frozen
    kept = stored(data, MODEL, frozen, tmp_path / "features")
    for name, text in (("step", data), ("stored", kept)):
        run_training(tmp_path / name, config, kind=kind, data=text, **options)
    plain, again = (told(tmp_path / name) for name in ("step", "stored"))
    assert len(plain) == len(again) > 4
    for ours, theirs in zip(plain, again, strict=True):
        for name in ("loss", "held_out"):
            if name in ours:
                np.testing.assert_allclose(theirs[name], ours[name], rtol=0.02)


def test_with_stored_features_a_step_has_no_pass_of_the_teacher(monkeypatch):
    from jspec.train import objective

    monkeypatch.setattr(objective, "forward_text", lambda *a, **k: pytest.fail("it is read"))
    batch = {name: jnp.asarray(x) for name, x in random_packed(4, seed=0).arrays.items()}
    features = jnp.ones((*batch["tokens"].shape, WIDTH), jnp.bfloat16)
    frozen = random_weights(MODEL)
    found = objective.teacher_features(frozen, MODEL, batch | {"features": features}, None)
    np.testing.assert_array_equal(found, np.ones_like(found))
    assert found.dtype == frozen["norm"].dtype
