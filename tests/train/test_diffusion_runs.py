"""A diffusion model's run: how it begins, that it goes on exactly, and what it leaves."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.diffusion import describe
from jspec.checkpoints.target import load_model
from jspec.checkpoints.write import write_checkpoint
from jspec.models.model import build, forward_text, head, random_params
from jspec.testing.models import tiny_config
from jspec.train.block_diffusion import BlockDiffusion
from jspec.train.command.cli import main
from jspec.train.config import CorpusConfig, DataConfig, DiffusionTrainingConfig
from jspec.train.diffusion import diffusion_model, objective_of, trainable_of
from jspec.train.masked_diffusion import MaskedDiffusion
from tests.support.tolerances import tolerance
from tests.support.training import kill_at, loop_config, run_training, told

STEPS = 5
CHANGES = dict(steps=STEPS, log_every=2)
CAUSAL = build(tiny_config(has_tied_head=False))


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def recipe(**fields) -> DiffusionTrainingConfig:
    data = DataConfig(corpora=[CorpusConfig(file="unused")], length=16)
    return DiffusionTrainingConfig(out="unused", tokenizer="unused", steps=1, data=data, **fields)


# --- how it begins -------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 2))
def logits_of(model, params, is_causal):
    tokens = jnp.arange(12, dtype=jnp.int32)[None] * 5
    rows = jnp.arange(12, dtype=jnp.int32)[None]
    hidden, _ = forward_text(params, model, tokens, 0 * rows, rows, is_causal=is_causal)
    return head(params, model, hidden)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_it_begins_as_the_causal_model_it_was(attention):
    """With biases and with a row for the mask; under a causal mask it is the same function."""
    params = random_params(CAUSAL, key=jax.random.key(0), scale=0.35)
    config = recipe(text_attention=attention)
    model, start = diffusion_model(config, CAUSAL, params, mask_id=61, n_ids=61)
    is_dream = attention == "bidirectional"
    assert model.model.config.family == ("Dream" if is_dream else "llama")
    assert model.model.config.has_qkv_bias == is_dream
    assert model.config.is_text_causal != is_dream
    assert model.vocab_size == 62 and not model.model.config.is_causal
    before, after = logits_of(CAUSAL, params, True), logits_of(model.model, start, True)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(after[..., :61], before, rtol=0, atol=atol)
    np.testing.assert_allclose(after[..., 61], before.mean(axis=-1), rtol=0, atol=atol)
    assert np.abs(np.asarray(logits_of(model.model, start, False) - after)).max() > 0.1


def test_a_mask_of_the_tokenizer_adds_no_row():
    params = random_params(CAUSAL, key=jax.random.key(0))
    model, start = diffusion_model(recipe(), CAUSAL, params, mask_id=7, n_ids=61)
    assert model.vocab_size == 61 and model.config.mask_id == 7
    assert start is not None and np.array_equal(start["embedding"], params["embedding"])
    assert diffusion_model(recipe(), CAUSAL, None, mask_id=7, n_ids=61)[1] is None


def test_a_config_names_its_objective():
    fields = dict(k_max=4, slot_decay=3.0, suffix_share=0.25, teacher_share=0.6, remat=True)
    for attention, kind in (("bidirectional", MaskedDiffusion), ("causal", BlockDiffusion)):
        config = recipe(
            text_attention=attention,
            is_shifted=False,
            piece_lengths=[6, 9],
            weighting="cart",
            min_ratio=0.1,
            anneal_steps=5,
            n_blocks=3,
            **fields,
        )
        model, _ = diffusion_model(config, CAUSAL, None, mask_id=7, n_ids=61)
        objective = objective_of(config, model, CAUSAL)
        assert isinstance(objective, kind)
        found = vars(objective)
        assert fields.items() <= found.items()
        assert (found["mask_id"], found["is_shifted"], found["teacher"]) == (7, False, CAUSAL)
        rest = {"n_blocks": 3} if kind is BlockDiffusion else {"anneal_steps": 5, "min_ratio": 0.1}
        assert rest.items() <= found.items()
        if kind is MaskedDiffusion:
            assert (found["piece_lengths"], found["weighting"]) == ((6, 9), "cart")


@pytest.mark.parametrize("is_shifted", [True, False])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_what_is_exported_is_loaded_as_it_was(tmp_path, attention, is_shifted):
    config = recipe(text_attention=attention, is_shifted=is_shifted)
    params = random_params(CAUSAL, key=jax.random.key(0), scale=0.35)
    model, start = diffusion_model(config, CAUSAL, params, mask_id=61, n_ids=60)
    trainable_of(model, start, extra_config={"eos_token_id": 1}).export(start, tmp_path)
    loaded = load_model(tmp_path, dtype="bfloat16")
    found = describe(loaded, n_ids=60)
    assert (found.config, found.model) == (model.config, model.model)
    assert loaded.stop_ids == (1,)
    for ours, theirs in zip(jax.tree.leaves(start), jax.tree.leaves(loaded.params), strict=True):
        assert np.array_equal(ours.astype(jnp.bfloat16), theirs)


# --- a run ---------------------------------------------------------------------------------------


def run(directory: Path, **more):
    return run_training(directory, loop_config(**CHANGES), kind="diffusion", **more)


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path):
    """Masks and blocks are those of the run that nothing stopped."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    outcome = run(whole)
    assert (outcome.steps, outcome.is_complete) == (STEPS, True)
    kill_at(killed, kind="diffusion", step=4, changes=CHANGES)
    assert 0 < len(told(killed)) < len(told(whole))
    assert run(killed, resume=True) == outcome
    assert told(killed) == told(whole)
    for name in ("model.safetensors", "config.json"):
        exported = [path / "model" / name for path in (whole, killed)]
        assert exported[0].read_bytes() == exported[1].read_bytes()
    told_of = [record for record in told(whole) if "held_out" in record]
    assert all("agreement_3" in record["held_out_metrics"] for record in told_of)


# --- the command ---------------------------------------------------------------------------------

WORDS = "the cat saw a dog and the dog ran to the sea where a ship with red sails lay".split()
SIZES = dict(
    vocab_size=300, max_positions=64, width=16, mlp_width=24, n_layers=1, has_tied_head=True
)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory) -> Path:
    """A causal model of the tests' tokenizer."""
    folder = tmp_path_factory.mktemp("causal")
    model = build(tiny_config(**SIZES))
    params = random_params(model, key=jax.random.key(1), dtype=jnp.bfloat16, scale=0.3)
    write_checkpoint(folder, params, model.config)
    return folder


def command(tmp_path: Path, tokenizer_folder: Path, causal_folder: Path, **changes) -> int:
    rows = [{"text": " ".join(WORDS[i % 7 : 9 + i % 5])} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "kind": "diffusion",
        "out": str(tmp_path / "run"),
        "tokenizer": str(tokenizer_folder),
        "init_from": str(causal_folder),
        "teacher": str(causal_folder),
        "k_max": 3,
        "piece_lengths": [8],
        "n_blocks": 4,
        "data": {"folder": str(tmp_path), "corpora": ["a.jsonl"], "length": 32, "held_out": 0.1},
        "steps": 2,
        "batch_size": 2,
        "compute_dtype": "float32",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values | changes))
    return main(["--config", str(tmp_path / "recipe.yaml"), "--json"])


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_command_leaves_a_drafter_and_goes_on_from_one(
    tmp_path, tokenizer_folder, causal_folder, attention, capsys
):
    """The tokenizer has no mask: it becomes the id after its last, which the teacher lacks."""
    folders = (tmp_path, tokenizer_folder, causal_folder)
    assert command(*folders, text_attention=attention) == 0
    said, trained = capsys.readouterr(), tmp_path / "run/model"
    first = json.loads(said.out.splitlines()[0])
    assert {"loss", "agreement_1", "agreement_3"} <= set(first)
    if attention == "causal":  # it begins as its teacher, and sees a text as that one does
        assert first["agreement_1"] == 1.0
    assert f"--drafter diffuspec --drafter-path {trained} --compare" in said.err
    found = describe(load_model(trained))
    assert (found.config.mask_id, found.config.n_ids, found.vocab_size) == (300, 300, 301)
    assert found.config.is_text_causal == (attention == "causal")
    assert (trained / "tokenizer.json").is_file()
    more = dict(init_from=str(trained), out=str(tmp_path / "more"), steps=1)
    assert command(*folders, text_attention=attention, **more) == 0
    assert describe(load_model(tmp_path / "more/model")) == found


LARGER = SIZES | dict(vocab_size=310, n_heads=2, n_kv_heads=1, head_dim=8)
MISTAKES = {
    "no beginning": (dict(init_from=None), "either model (its sizes) or init_from"),
    "short pieces": (dict(piece_lengths=[3]), "piece_lengths that are each more than k_max"),
    "another teacher": (dict(init_from=None, model=LARGER), "they must share a tokenizer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, tmp_path, tokenizer_folder, causal_folder, capsys):
    changes, message = MISTAKES[mistake]
    assert command(tmp_path, tokenizer_folder, causal_folder, **changes) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
