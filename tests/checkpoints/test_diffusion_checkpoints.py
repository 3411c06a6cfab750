"""Dream and LLaDA directories: exact names both ways, logits by definition, and what is refused."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jspec.certify import reference
from jspec.checkpoints.diffusion import describe, load_diffusion, write_diffusion
from jspec.checkpoints.hf_config import read_hf_config, write_hf_config
from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.target import load_model, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.model import abstract_params, build, empty_cache, forward, random_params
from jspec.testing.models import tiny_config, tiny_target
from tests.support.blocks import bidirectional_block
from tests.support.checkpoints import write_directory
from tests.support.diffusion import (
    CONFIGS,
    DREAM,
    LLADA,
    MASK,
    in_llama_names,
    shapes_of,
    tensors_of,
    write_tiny,
)

TEXT = [5, 17, 99, 2, 64, 64, 31, MASK, 0, 127, MASK]
run = jax.jit(forward, static_argnames=("model", "capture"))


def logits_of(model, params, tokens=TEXT, capture=()):
    T = len(tokens)
    cache = empty_cache(model.config, 1, T, jnp.float32)
    block = bidirectional_block(jnp.zeros((1,), jnp.int32), T)
    output, _ = run(params, model, cache, jnp.asarray([tokens]), block, capture=capture)
    return np.asarray(output.logits[0], np.float64), output.features


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_definition_in_float64(kind, tmp_path):
    loaded = load_model(write_tiny(tmp_path, kind))
    config = loaded.model.config
    assert not config.is_causal
    weights = {
        name: x.astype(np.float64) for name, x in in_llama_names(tensors_of(CONFIGS[kind])).items()
    }
    wanted = reference.logits_of(config, weights, TEXT)
    logits, _ = logits_of(loaded.model, loaded.params)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_names_shapes_and_numbers_are_the_same_both_ways(kind, max_shard_bytes, tmp_path):
    loaded = load_model(write_tiny(tmp_path / "theirs", kind))
    ours = tmp_path / "ours"
    write_diffusion(ours, loaded.params, describe(loaded))
    theirs = tensors_of(CONFIGS[kind])
    stored = {}
    write_checkpoint(
        tmp_path / "split", loaded.params, loaded.model.config, max_shard_bytes=max_shard_bytes
    )
    for file in (tmp_path / "split").glob("*.safetensors"):
        stored |= load_file(file)
    assert (
        stored.keys()
        == shapes_of(CONFIGS[kind]).keys()
        == load_file(ours / "model.safetensors").keys()
    )
    for name, x in theirs.items():
        np.testing.assert_array_equal(stored[name], x)
    written = json.loads((ours / "config.json").read_text())
    ignored = {"torch_dtype", "attention_dropout", "initializer_range", "alibi_bias_max"}
    ignored |= {"mlp_ratio", "bos_token_id", "eos_token_id", "pad_token_id"}
    ignored |= {"max_window_layers", "sliding_window"}
    same = {name: value for name, value in CONFIGS[kind].items() if name not in ignored}
    assert {name: written[name] or None for name in same} == {
        name: value or None for name, value in same.items()
    }
    assert read_hf_config(written) == loaded.model.config
    assert describe(load_model(ours)) == describe(loaded)


def test_llada_in_groups_of_blocks(tmp_path):
    plain = load_model(write_tiny(tmp_path / "plain", "llada", n_layers=4))
    values = LLADA | {"block_group_size": 2, "n_layers": 4}
    ungrouped = tensors_of(values | {"block_group_size": 1})
    tensors = {}
    for name, x in ungrouped.items():
        for i in range(4):
            name = name.replace(f".blocks.{i}.", f".block_groups.{i // 2}.{i % 2}.")
        tensors[name] = x
    assert tensors.keys() == shapes_of(values).keys()
    grouped = load_model(write_directory(tmp_path / "grouped", values, tensors))
    assert grouped.model == plain.model
    jax.tree.map(np.testing.assert_array_equal, grouped.params, plain.params)
    fewer = write_directory(tmp_path / "fewer", values | {"n_layers": 2}, tensors)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_model(fewer).params["layers"],
        plain.params["layers"][:2],
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_later_token_changes_earlier_logits_and_hidden_states(kind, tmp_path):
    loaded = load_model(write_tiny(tmp_path, kind))
    last = f"enter.{loaded.model.config.n_layers - 1}"
    one, hidden = logits_of(loaded.model, loaded.params, capture=(last,))
    other, changed = logits_of(loaded.model, loaded.params, [*TEXT[:-1], 8], capture=(last,))
    assert np.abs(one[0] - other[0]).max() > 1e-3
    assert np.abs(hidden[last][0, 0] - changed[last][0, 0]).max() > 1e-4


def test_llada_may_pad_its_vocabulary_and_derive_the_width_of_its_mlp():
    padded = LLADA | {"vocab_size": 126, "mlp_hidden_size": None, "mlp_ratio": 3}
    config = read_hf_config(padded)
    assert (config.vocab_size, config.mlp_width) == (128, 3 * config.width)


def test_class_defaults_stand_where_the_file_is_silent():
    dream = read_hf_config({"model_type": "Dream"})
    assert (dream.vocab_size, dream.width, dream.n_heads, dream.n_kv_heads) == (
        151936,
        4096,
        32,
        32,
    )
    assert (dream.mlp_width, dream.n_layers, dream.rope.theta) == (22016, 32, 1e4)
    assert dream.has_qkv_bias and not dream.is_causal and not dream.has_tied_head
    by_class = {name: value for name, value in DREAM.items() if name != "model_type"}
    assert read_hf_config(by_class).family == "Dream"
    by_class = {name: value for name, value in LLADA.items() if name != "model_type"}
    assert read_hf_config(by_class) == read_hf_config(LLADA)
    for changes in ({"n_kv_heads": None}, {"embedding_size": None}, {"mlp_hidden_size": None}):
        config = read_hf_config(LLADA | changes)
        assert (config.n_kv_heads, config.vocab_size) == (4, 128)
        assert config.mlp_width == (64 if "mlp_hidden_size" not in changes else 128)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (DREAM, {"use_mrope": True}, "use_mrope is not supported in Dream, only false"),
        (DREAM, {"use_sliding_window": True}, "use_sliding_window is not supported"),
        (LLADA, {"alibi": True}, "alibi must be false, got true"),
        (LLADA, {"include_bias": True}, "include_bias must be false, got true"),
        (LLADA, {"layer_norm_type": "default"}, "layer_norm_type must be 'rms', got 'default'"),
        (LLADA, {"rope": False}, "rope must be true, got false"),
        (LLADA, {"block_type": "sequential"}, "block_type must be 'llama'"),
        (LLADA, {"activation_type": "swiglu"}, "activation_type must be 'silu'"),
        (LLADA, {"scale_logits": True}, "scale_logits must be false"),
        (LLADA, {"attention_layer_norm": True}, "attention_layer_norm must be false"),
        (LLADA, {"input_emb_norm": True}, "input_emb_norm must be false"),
        (LLADA, {"block_group_size": 3}, "block_group_size 3 must divide n_layers 2"),
        (LLADA, {"d_model": "wide"}, "d_model must be a positive integer"),
        (LLADA, {"n_kv_heads": 3}, "3 key/value heads must divide 4 query heads"),
    ],
)
def test_what_is_not_supported_is_one_line(values, changes, message):
    with pytest.raises(UserError, match=message) as error:
        read_hf_config(values | changes)
    assert "\n" not in str(error.value)


def test_options_that_llada_cannot_write_are_an_error():
    config = read_hf_config(LLADA)
    for changes in ({"has_qk_norm": True}, {"is_causal": True}, {"head_dim": 16}):
        with pytest.raises(ValueError, match="cannot express"):
            write_hf_config(
                tiny_config(**({"family": config.family, "is_causal": False} | changes))
            )
    with pytest.raises(ValueError, match="cannot express"):
        write_hf_config(tiny_config(family="Dream", has_qkv_bias=True))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_bidirectional_model_is_no_target(kind, tmp_path):
    write_tiny(tmp_path, kind)
    with pytest.raises(UserError, match="reads in both directions cannot be decoded") as error:
        load_target(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "n_params", "n_tensors"),
    [
        ("Dream-org/Dream-v0-Instruct-7B", 7_615_616_512, 339),
        ("Dream-org/Dream-v0-Base-7B", 7_615_616_512, 339),
        ("GSAI-ML/LLaDA-8B-Instruct", 8_015_581_184, 291),
        ("GSAI-ML/LLaDA-8B-Base", 8_015_581_184, 291),
        ("Qwen/Qwen2.5-32B", 32_763_876_352, 771),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352, 771),
    ],
)
def test_published_sizes(name, n_params, n_tensors):
    leaves = jax.tree.leaves(abstract_params(build(KNOWN[name]), jnp.bfloat16))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == n_params
    assert len(leaves) == n_tensors
    assert read_hf_config(write_hf_config(KNOWN[name])) == KNOWN[name]


@pytest.mark.parametrize(("kind", "is_shifted"), [("dream", True), ("llada", False)])
def test_a_drafter_is_loaded_for_its_target(kind, is_shifted, tmp_path):
    write_tiny(tmp_path, kind, bos_token_id=7)
    target = tiny_target(vocab_size=128)
    model, params = load_diffusion(tmp_path, target=target)
    config = model.config
    assert (config.mask_id, config.is_shifted, config.n_ids) == (MASK, is_shifted, 128)
    assert config.forbidden == (7,)
    assert jax.tree.leaves(params)[0].dtype == jnp.float32
    other, _ = load_diffusion(tmp_path, target=target, is_shifted=not is_shifted, forbidden=(9,))
    assert other.config.is_shifted is not is_shifted and other.config.forbidden == (7, 9)


def test_a_beginning_that_is_also_the_end_may_be_drafted(tmp_path):
    model, _ = load_diffusion(write_tiny(tmp_path, "dream"), target=tiny_target(vocab_size=128))
    assert DREAM["bos_token_id"] == DREAM["eos_token_id"] and model.config.forbidden == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": None}, "mask_token_id must be a token id, got None"),
        ({"mask_token_id": 128}, "mask_token_id 128 is not in the vocabulary of 128"),
        ({"is_shifted": "yes"}, "is_shifted must tell whether row r predicts"),
        ({"mask_token_id": True}, "mask_token_id must be a token id"),
    ],
)
def test_what_a_drafter_must_say(changes, message, tmp_path):
    write_tiny(tmp_path, "dream", **changes)
    with pytest.raises(UserError, match=message):
        load_diffusion(tmp_path, target=tiny_target(vocab_size=128))


def test_any_family_may_read_in_both_directions(tmp_path):
    config = tiny_config(is_causal=False)
    params = random_params(build(config), key=jax.random.key(0))
    write_checkpoint(tmp_path, params, config, extra_config={"mask_token_id": 60})
    with pytest.raises(UserError, match="is_shifted must tell"):
        load_diffusion(tmp_path, target=tiny_target())
    write_checkpoint(
        tmp_path, params, config, extra_config={"mask_token_id": 60, "is_shifted": True}
    )
    model, read = load_diffusion(tmp_path, target=tiny_target())
    write_diffusion(tmp_path / "again", read, model)
    assert load_diffusion(tmp_path / "again", target=tiny_target())[0] == model


def test_a_causal_model_and_another_vocabulary_are_refused(tmp_path):
    config = tiny_config()
    params = random_params(build(config), key=jax.random.key(0))
    said = {"mask_token_id": 60, "is_shifted": True}
    write_checkpoint(tmp_path / "causal", params, config, extra_config=said)
    with pytest.raises(UserError, match="reads in both directions, this one is causal"):
        load_diffusion(tmp_path / "causal", target=tiny_target())
    with pytest.raises(UserError, match="vocabulary of 128 and the target one of 61"):
        load_diffusion(write_tiny(tmp_path / "dream", "dream"), target=tiny_target())


def test_ids_that_the_target_does_not_know_are_never_predicted(tmp_path):
    """Dream's own tokenizer files are `vocab.json` and `added_tokens.json`, with ids of its own."""
    pieces = {f"w{i}": i for i in range(110)}
    write_tiny(tmp_path / "dream", "dream")
    (tmp_path / "dream" / "vocab.json").write_text(json.dumps(pieces))
    (tmp_path / "dream" / "added_tokens.json").write_text(json.dumps({"<|mask|>": MASK}))
    config = tiny_config(vocab_size=112)
    params = random_params(build(config), key=jax.random.key(0))
    write_checkpoint(tmp_path / "target", params, config)
    (tmp_path / "target" / "vocab.json").write_text(json.dumps(pieces))
    model, _ = load_diffusion(tmp_path / "dream", target=load_target(tmp_path / "target"))
    assert model.config.n_ids == 110 and model.vocab_size == 128
    assert describe(load_model(tmp_path / "dream")).config.n_ids == MASK + 1
