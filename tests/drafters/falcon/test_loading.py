"""A Falcon drafter from its directory: what is taken from where, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jspec.checkpoints.target import Target
from jspec.drafters import load_drafter
from jspec.drafters.falcon.checkpoint import write_checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import Tree, chain, find
from jspec.errors import UserError
from jspec.models import sar_head
from jspec.models.sar_head import LstmMode, SarConfig
from jspec.testing.models import random_head, tiny_config, tiny_target

V = 23
SMALL = dict(vocab_size=V, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
TARGET = tiny_target(**SMALL)
TIED = tiny_target(**SMALL, has_tied_head=True)
CONFIG = SarConfig(tiny_config(**SMALL), block_size=3, lstm_mode=LstmMode.SEQUENCE)
PARAMS = random_head(sar_head.build(CONFIG))
COUNTS = np.random.default_rng(0).integers(0, 5, V).astype(np.float32)
FITTED = Tree(((0,), (0, 0), (2,)))


@pytest.fixture
def directory(tmp_path) -> Path:
    """A head with its copy of the embedding and the counts of its training."""
    write_checkpoint(tmp_path, PARAMS, CONFIG, embedding=TARGET.params["embedding"])
    save_file({"counts": COUNTS}, tmp_path / "token_counts.safetensors")
    return tmp_path


def load(directory: Path | None, target: Target = TARGET, **options) -> tuple[Falcon, dict]:
    loaded = load_drafter("falcon", directory, target=target, **options)
    assert loaded.name == "falcon" and isinstance(loaded.drafter, Falcon)
    return loaded.drafter, loaded.params


def fit(directory: Path) -> None:
    (directory / "tree.yaml").write_text(json.dumps({"paths": FITTED.paths}))


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: v for name, v in values.items() if v is not None}))


def test_a_directory_is_the_head_that_was_written(directory):
    drafter, params = load(directory)
    assert drafter.model.config == CONFIG and drafter.target == TARGET.model
    assert drafter.block_align == "right"
    jax.tree.map(np.testing.assert_array_equal, params["head"], PARAMS)
    assert set(params) == {"head", "target"}


def test_the_target_is_shared_and_not_copied(directory):
    _, params = load(directory, draft_vocabulary=20)
    ours, theirs = jax.tree.leaves(params["target"]), jax.tree.leaves(TARGET.params)
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_a_fitted_tree_is_taken_unless_one_is_named(directory):
    assert load(directory)[0].tree == find("kmask2_8layer_tree")
    fit(directory)
    assert load(directory)[0].tree == FITTED
    assert load(directory, tree="chain-4")[0].tree == chain(4)
    other = directory / "other.json"
    other.write_text(json.dumps({"paths": [[0], [1]]}))
    assert load(directory, tree=str(other))[0].tree == Tree(((0,), (1,)))
    assert load(directory, block_align="left")[0].block_align == "left"


@pytest.mark.parametrize("target", [TARGET, TIED], ids=["untied", "tied"])
def test_a_reduced_vocabulary_is_the_most_frequent_tokens(directory, target):
    fit(directory)
    _, params = load(directory, target, draft_vocabulary=7)
    ids = np.asarray(params["ids"])
    assert len(set(ids)) == 7 and (np.diff(ids) > 0).all() and ids.dtype == np.int32
    assert COUNTS[ids].min() >= np.delete(COUNTS, ids).max()
    weights = target.params.get("head_weight")
    whole = target.params["embedding"].T if weights is None else weights
    np.testing.assert_array_equal(params["rows"], np.asarray(whole)[:, ids])
    _, every = load(directory, target, draft_vocabulary=V)
    np.testing.assert_array_equal(every["ids"], np.arange(V))


def test_a_head_drafts_what_it_was_trained_to_draft(directory):
    fit(directory)
    edit_config(directory, draft_vocab_size=7)
    np.testing.assert_array_equal(
        load(directory)[1]["ids"], load(directory, draft_vocabulary=7)[1]["ids"]
    )
    assert len(load(directory, draft_vocabulary=9)[1]["ids"]) == 9


def test_the_head_has_the_type_of_the_target(directory):
    target = tiny_target(**SMALL, dtype=jnp.bfloat16)
    _, params = load(directory, target)
    assert {leaf.dtype for leaf in jax.tree.leaves(params["head"])} == {jnp.dtype(jnp.bfloat16)}


# --- mistakes -------------------------------------------------------------------------------------


def refused(message: str, directory: Path | None, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(directory, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tree="kmask2_4layer_tre"), "unknown tree .* did you mean 'kmask2_4layer_tree'"),
        (dict(tree="chain-0"), "unknown tree 'chain-0'"),
        (dict(block_align="middle"), "falcon: block_align must be right or left, got 'middle'"),
        (dict(draft_vocabulary=V + 1), f"draft_vocabulary 24: .* the {V} tokens"),
        (dict(draft_vocabulary=-1), "draft_vocabulary must be how many tokens .* got -1"),
        (dict(draft_vocabulary=19), "takes the best 20 tokens of a row, and 19 are drafted"),
        (dict(trees="chain-2"), "no option 'trees'; it has draft_vocabulary, tree, block_align"),
        (
            dict(draft_vocabulary="9"),
            "falcon: draft_vocabulary must be how many tokens are drafted, .* got '9'",
        ),
    ],
)
def test_options_out_of_range_are_refused(directory, options, message):
    refused(message, directory, **options)


def test_a_later_pass_may_be_the_widest(directory):
    tree = directory / "late.json"
    tree.write_text(json.dumps({"paths": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 5]]}))
    refused("the best 6 tokens of a row, and 5", directory, tree=str(tree), draft_vocabulary=5)


def test_a_head_needs_a_directory_that_is_there(tmp_path):
    refused("falcon needs a trained head: give its path", None)
    refused("nowhere", tmp_path / "nowhere")
    refused("config.json", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=32), "a hidden size of 16, this one has 32; give the target"),
        (dict(vocab_size=29), f"a vocabulary of {V}, this one has 29; give the target"),
    ],
)
def test_a_head_of_another_target_is_refused(directory, changes, message):
    refused(message, directory, target=tiny_target(**(SMALL | changes)))


def test_a_head_without_its_block_size_is_refused(directory):
    edit_config(directory, k_mask=None)
    refused("config.json: no k_mask", directory)


def test_counts_that_are_not_there_or_of_another_vocabulary_are_refused(directory):
    file = directory / "token_counts.safetensors"
    for tensors in ({"counts": COUNTS[:-1]}, {"count": COUNTS}):
        save_file(tensors, file)
        refused(f"expected a tensor `counts` of {V} numbers", directory, draft_vocabulary=20)
    file.unlink()
    refused("needs .*token_counts.safetensors.*set it to 0", directory, draft_vocabulary=20)


def test_a_broken_tree_of_the_directory_is_refused(directory):
    (directory / "tree.yaml").write_text("paths: [[1, 0]]")
    refused(r"tree.yaml: path \[1, 0\] has no parent", directory)
    load(directory, tree="chain-2")


RELEASED = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "k_mask": 2,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "qkv_bias": True,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.2",
    "use_cache": True,
    "vocab_size": V,
}
"""A config as the released code reads it, for a Qwen2.5 that is small."""

RELEASED_SHAPES = {
    "embed_tokens.weight": (V, 16),
    "layers.0.self_attn.q_proj.weight": (16, 16),
    "layers.0.self_attn.q_proj.bias": (16,),
    "layers.0.self_attn.k_proj.weight": (8, 16),
    "layers.0.self_attn.k_proj.bias": (8,),
    "layers.0.self_attn.v_proj.weight": (8, 16),
    "layers.0.self_attn.v_proj.bias": (8,),
    "layers.0.self_attn.o_proj.weight": (16, 16),
    "layers.0.mlp.gate_proj.weight": (24, 16),
    "layers.0.mlp.up_proj.weight": (24, 16),
    "layers.0.mlp.down_proj.weight": (16, 24),
    "layers.0.post_attention_layernorm.weight": (16,),
    "lstm.weight_ih_l0": (64, 32),
    "lstm.weight_hh_l0": (64, 16),
    "lstm.bias_ih_l0": (64,),
    "lstm.bias_hh_l0": (64,),
    "lstm.weight_ih_l1": (64, 16),
    "lstm.weight_hh_l1": (64, 16),
    "lstm.bias_ih_l1": (64,),
    "lstm.bias_hh_l1": (64,),
}
"""Every tensor of a released head with biases, by the names of the released modules."""


def test_a_released_head_for_qwen_is_read_by_its_names(tmp_path):
    """In bfloat16, beside a target with biases, as Qwen2.5 has them."""
    target = tiny_target(
        **SMALL | dict(n_heads=4, n_kv_heads=2, head_dim=4, mlp_width=24), has_qkv_bias=True
    )
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(size=shape).astype(jnp.bfloat16)
        for name, shape in RELEASED_SHAPES.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    drafter, params = load(tmp_path, target, tree="chain-2")
    decoder = drafter.model.config.decoder
    assert (decoder.has_qkv_bias, decoder.rope.theta, drafter.block_size) == (True, 1e6, 2)
    assert (decoder.n_heads, decoder.n_kv_heads, decoder.norm_eps) == (4, 2, 1e-6)
    attention = params["head"]["layers"][0]["attention"]
    for ours, theirs in (("q", "q_proj.weight"), ("k_bias", "k_proj.bias"), ("o", "o_proj.weight")):
        stored = tensors[f"layers.0.self_attn.{theirs}"].astype(np.float32)
        np.testing.assert_array_equal(attention[ours], stored.T)
    for missing in ("layers.0.self_attn.v_proj.bias", "lstm.bias_hh_l1"):
        rest = {name: tensor for name, tensor in tensors.items() if name != missing}
        save_file(rest, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=missing):
            load(tmp_path, target, tree="chain-2")
