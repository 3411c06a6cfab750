"""Directories of Falcon heads: the released names and fields, exact round trips, clear faults."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.tensor_files import LazyTensor
from jspec.drafters.falcon.checkpoint import (
    EMBEDDING,
    HEAD_AXES,
    check_embedding,
    lstm_evidence,
    read_config,
    read_params,
    tensor_shapes,
    write_checkpoint,
)
from jspec.errors import UserError
from jspec.models.config import Rope, RopeKind
from jspec.models.sar_head import LstmMode, SarConfig, abstract_params, build, mix, no_memory
from jspec.models.weights import leaf_name
from jspec.sharding import make_mesh
from jspec.state import Params
from jspec.testing.models import tiny_config
from tests.support.pytrees import assert_same

POINTWISE, SEQUENCE = LstmMode.POINTWISE, LstmMode.SEQUENCE
SYNTHETIC = SarConfig(
    tiny_config(
        vocab_size=32, width=8, mlp_width=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=4
    )
)


def params_of(config: SarConfig, seed: int = 0, dtype="float32") -> Params:
    leaves, treedef = jax.tree.flatten(abstract_params(build(config), dtype))
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(treedef, drawn)


def embedding_of(config: SarConfig, dtype="float32") -> jax.Array:
    shape = (config.decoder.vocab_size, config.decoder.width)
    return jax.random.normal(jax.random.key(9), shape, jnp.dtype(dtype))


def read(directory: Path, dtype="float32", *, mesh: Mesh | None = None) -> tuple[SarConfig, Params]:
    checkpoint, mesh = find_checkpoint(directory), mesh or make_mesh()
    config = read_config(checkpoint)
    model = build(config)
    return config, read_params(checkpoint, config, model, dtype=dtype, mesh=mesh)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A complete directory as released, for tests that spoil it."""
    head = tmp_path / "head"
    write_checkpoint(head, params_of(SYNTHETIC), SYNTHETIC, embedding=embedding_of(SYNTHETIC))
    edit_config(head, lstm_mode=None)
    return head


def edit_config(directory: Path, **changes) -> None:
    """Change fields of `config.json`; None removes one."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    kept = {
        name: value for name, value in values.items() if name not in changes or value is not None
    }
    path.write_text(json.dumps(kept))


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def edit_tensors(directory: Path, **changes) -> None:
    """Change tensors, their dots written as double underscores; None removes one."""
    tensors = tensors_of(directory)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, directory / "model.safetensors")


def refused(directory: Path, message: str) -> None:
    """Reading raises one line that matches."""
    with pytest.raises(UserError, match=message) as error:
        read(directory)
    assert "\n" not in str(error.value)


# --- names, shapes and counts ---------------------------------------------------------------------

RELEASED = {
    "embed_tokens.weight": (32, 8),
    "layers.0.self_attn.q_proj.weight": (8, 8),
    "layers.0.self_attn.k_proj.weight": (8, 8),
    "layers.0.self_attn.v_proj.weight": (8, 8),
    "layers.0.self_attn.o_proj.weight": (8, 8),
    "layers.0.mlp.gate_proj.weight": (16, 8),
    "layers.0.mlp.up_proj.weight": (16, 8),
    "layers.0.mlp.down_proj.weight": (8, 16),
    "layers.0.post_attention_layernorm.weight": (8,),
    "lstm.weight_ih_l0": (32, 16),
    "lstm.weight_hh_l0": (32, 8),
    "lstm.bias_ih_l0": (32,),
    "lstm.bias_hh_l0": (32,),
    "lstm.weight_ih_l1": (32, 8),
    "lstm.weight_hh_l1": (32, 8),
    "lstm.bias_ih_l1": (32,),
    "lstm.bias_hh_l1": (32,),
}


@pytest.mark.parametrize("mode", LstmMode)
def test_the_released_names_are_written(mode, tmp_path):
    config = dataclasses.replace(SYNTHETIC, lstm_mode=mode)
    write_checkpoint(tmp_path, params_of(config), config, embedding=embedding_of(config))
    tensors = tensors_of(tmp_path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == RELEASED
    assert sum(tensor.size for tensor in tensors.values()) == 2312


def test_what_a_pointwise_head_does_not_read_is_written_as_zeros(checkpoint):
    tensors, params = tensors_of(checkpoint), params_of(SYNTHETIC)
    for layer in range(2):
        gates = tensors[f"lstm.weight_ih_l{layer}"].reshape(4, 8, -1)
        write, new, out = np.split(np.asarray(params["lstm"][layer]["input"]).T, 3)
        np.testing.assert_array_equal(gates, [write, np.zeros_like(write), new, out])
        assert not tensors[f"lstm.bias_ih_l{layer}"].reshape(4, 8)[1].any()
        assert not tensors[f"lstm.weight_hh_l{layer}"].any()
        assert not tensors[f"lstm.bias_hh_l{layer}"].any()


def test_biases_and_more_layers_have_their_names():
    decoder = dataclasses.replace(SYNTHETIC.decoder, has_qkv_bias=True, n_kv_heads=1)
    shapes = tensor_shapes(dataclasses.replace(SYNTHETIC, decoder=decoder))
    added = {f"layers.0.self_attn.{name}_proj.bias" for name in "qkv"}
    assert set(shapes) == set(RELEASED) - {EMBEDDING} | added
    assert shapes["layers.0.self_attn.k_proj.bias"] == (4,)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (4, 8)
    two = dataclasses.replace(SYNTHETIC.decoder, n_layers=2, windows=())
    shapes = tensor_shapes(dataclasses.replace(SYNTHETIC, decoder=two))
    assert len(shapes) == 16 + 9 and "layers.1.input_layernorm.weight" in shapes
    assert "layers.0.input_layernorm.weight" not in shapes
    shapes = tensor_shapes(dataclasses.replace(SYNTHETIC, has_lstm_bias=False))
    assert set(shapes) == {name for name in RELEASED if "bias" not in name} - {EMBEDDING}


@pytest.mark.parametrize(
    ("sizes", "qkv_bias", "one", "two"),
    [
        ((4096, 11008, 32, 32), False, 537_989_120, 740_372_480),
        ((5120, 13824, 40, 40), False, 841_569_280, 1_158_773_760),
        ((3584, 18944, 28, 4), True, 490_012_672, 723_070_464),
        ((5120, 13824, 40, 8), True, 799_633_408, 1_074_902_016),
        ((5120, 27648, 40, 8), True, 1_011_970_048, 1_499_575_296),
        ((8192, 29568, 64, 8), True, 2_219_984_896, 3_097_669_632),
    ],
)
def test_heads_have_the_published_sizes(sizes, qkv_bias, one, two):
    width, mlp_width, n_heads, n_kv_heads = sizes
    for n_layers, expected in ((1, one), (2, two)):
        decoder = tiny_config(
            width=width,
            mlp_width=mlp_width,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=width // n_heads,
            has_qkv_bias=qkv_bias,
        )
        config = SarConfig(decoder)
        assert sum(map(math.prod, tensor_shapes(config).values())) == expected
    alive = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(build(config), "float32")))
    dead = 11 * width**2 + 10 * width
    assert alive == expected - dead


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LstmMode)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_plain", [True, False])
def test_a_round_trip_is_exact(mode, dtype, is_plain, tmp_path):
    rope = Rope() if is_plain else Rope(kind=RopeKind.LINEAR, theta=5e5, factor=4.0)
    config = SarConfig(
        tiny_config(has_qkv_bias=is_plain, rope=rope, norm_eps=1e-5),
        block_size=3,
        lstm_mode=mode,
        has_lstm_bias=is_plain,
    )
    params = params_of(config, dtype=dtype)
    write_checkpoint(tmp_path, params, config)
    back, read_back = read(tmp_path, dtype)
    assert back == config
    assert_same(read_back, params)
    assert EMBEDDING not in tensors_of(tmp_path)


def test_a_bias_is_the_sum_of_the_two_stored(checkpoint):
    ones = np.arange(32, dtype=np.float32)
    before = read(checkpoint)[1]["lstm"][0]["bias"]
    edit_tensors(checkpoint, lstm__bias_hh_l0=ones)
    after = read(checkpoint)[1]["lstm"][0]["bias"]
    expected = before + np.delete(ones.reshape(4, 8), 1, axis=0).reshape(-1)
    np.testing.assert_array_equal(after, expected)


def test_what_only_a_memory_needs_changes_no_pointwise_head(checkpoint):
    _, params = read(checkpoint)
    tensors, rng = tensors_of(checkpoint), np.random.default_rng(1)
    for name, tensor in tensors.items():
        if name.startswith("lstm.weight_hh"):
            tensor[...] = rng.uniform(-1, 1, tensor.shape)
        elif name.startswith("lstm."):
            tensor[8:16] = rng.normal(size=tensor[8:16].shape)
    save_file(tensors, checkpoint / "model.safetensors")
    assert_same(read(checkpoint)[1], params)
    edit_config(checkpoint, lstm_mode="sequence")
    lstm = read(checkpoint)[1]["lstm"][1]
    np.testing.assert_array_equal(lstm["recurrent"], tensors["lstm.weight_hh_l1"].T)
    np.testing.assert_array_equal(lstm["input"], tensors["lstm.weight_ih_l1"].T)


def test_writing_again_leaves_nothing_of_the_first(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    write_checkpoint(tmp_path, params_of(SYNTHETIC), SYNTHETIC, extra_config={"note": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["note"] == 1


def test_weights_go_to_every_device(checkpoint):
    """Each device of four holds the whole head."""
    mesh = make_mesh(tensor=4)
    _, params = read(checkpoint, mesh=mesh)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    assert len(params["lstm"][0]["input"].devices()) == 4
    names = {leaf_name(path) for path, _ in jax.tree.leaves_with_path(params)}
    assert names <= set(HEAD_AXES)


@pytest.mark.parity
def test_a_pickle_of_torch_is_the_same_head(checkpoint):
    torch = pytest.importorskip("torch")
    _, params = read(checkpoint)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in tensors_of(checkpoint).items()}
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    assert_same(read(checkpoint)[1], params)


@pytest.mark.parity
def test_the_lstm_is_that_of_torch(checkpoint):
    """Both ways of reading: each row as a text of its own, and rows as one text."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    tensors = tensors_of(checkpoint)
    for name, tensor in tensors.items():
        if name.startswith("lstm."):
            tensor[...] = rng.normal(size=tensor.shape)
    save_file(tensors, checkpoint / "model.safetensors")
    lstm = torch.nn.LSTM(16, 8, num_layers=2)
    names = [name for name in tensors if name.startswith("lstm.")]
    lstm.load_state_dict({name[5:]: torch.from_numpy(tensors[name]) for name in names})
    rows = rng.normal(size=(1, 7, 16)).astype(np.float32)
    halves = jnp.asarray(rows[..., :8]), jnp.asarray(rows[..., 8:])
    for mode, turned in ((POINTWISE, rows), (SEQUENCE, rows.swapaxes(0, 1))):
        edit_config(checkpoint, lstm_mode=mode.value)
        config, params = read(checkpoint)
        model = build(config)
        out, _ = mix(params, model, *halves, no_memory(model, 1, jnp.float32))
        with torch.no_grad():
            expected = lstm(torch.from_numpy(np.array(turned)))[0].numpy().reshape(1, 7, 8)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_pickle_without_torch_is_refused(checkpoint, monkeypatch):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(checkpoint, r"pytorch_model.bin: PyTorch .bin files need torch: pip install")


# --- faults ---------------------------------------------------------------------------------------


def test_all_faults_of_the_tensors_are_told_at_once(checkpoint):
    edit_tensors(
        checkpoint,
        lstm__weight_hh_l1=None,
        lstm__bias_hh_l0=None,
        fc__weight=np.zeros((8, 16), np.float32),
        layers__0__mlp__up_proj__weight=np.zeros((8, 16), np.float32),
    )
    refused(
        checkpoint,
        r"missing 2 tensors \(lstm.bias_hh_l0, lstm.weight_hh_l1\); unexpected 1 tensors "
        r"\(fc.weight\); wrong shapes: 1 tensors \(layers.0.mlp.up_proj.weight \[8, 16\] instead "
        r"of \[16, 8\]\); give the complete checkpoint",
    )


def test_an_input_norm_of_the_first_layer_is_unexpected(checkpoint):
    edit_tensors(checkpoint, layers__0__input_layernorm__weight=np.zeros(8, np.float32))
    refused(checkpoint, "unexpected 1 tensors")


def test_only_a_config_that_says_so_may_lack_the_embedding(checkpoint):
    _, params = read(checkpoint)
    tensors = tensors_of(checkpoint)
    del tensors[EMBEDDING]
    save_file(tensors, checkpoint / "model.safetensors")
    refused(checkpoint, r"missing 1 tensors \(embed_tokens.weight\)")
    edit_config(checkpoint, has_embedding=False)
    assert_same(read(checkpoint)[1], params)
    edit_tensors(checkpoint, embed_tokens__weight=np.zeros((31, 8), np.float32))
    refused(checkpoint, r"embed_tokens.weight \[31, 8\] instead of \[32, 8\]")


@pytest.mark.parametrize("mode", LstmMode)
def test_a_directory_that_shares_the_embedding_has_what_is_read_and_no_more(mode, tmp_path):
    config = dataclasses.replace(SYNTHETIC, lstm_mode=mode)
    params = params_of(config)
    write_checkpoint(tmp_path, params, config)
    stored = sum(tensor.size for tensor in tensors_of(tmp_path).values())
    read_numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    second_biases = 0 if mode is LstmMode.POINTWISE else 2 * 4 * config.decoder.width
    assert stored == read_numbers + second_biases
    edit_config(tmp_path, shares_embedding=None)
    refused(tmp_path, r"the tensors do not fit config.json: missing \d tensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_mask": None}, "no k_mask, the tokens of a pass; give a Falcon drafter"),
        ({"k_mask": 0}, "k_mask must be a positive integer, got 0"),
        ({"lstm_mode": "gru"}, "lstm_mode must be pointwise or sequence, got 'gru'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false, got 1"),
        ({"bias": "no"}, "bias must be true or false, got 'no'"),
        ({"hidden_size": -8}, "hidden_size must be a positive integer, got -8"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is refused"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(changes, message, checkpoint):
    edit_config(checkpoint, **changes)
    refused(checkpoint, f"head/config.json: {message}")


def test_a_config_may_leave_out_what_the_released_code_does(tmp_path):
    values = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1)
    values |= dict(num_attention_heads=2, k_mask=2, model_type="qwen2")
    (tmp_path / "config.json").write_text(json.dumps(values))
    decoder = dataclasses.replace(SYNTHETIC.decoder, max_positions=2048)
    assert read_config(find_checkpoint(tmp_path)) == SarConfig(decoder)


# --- what the file tells --------------------------------------------------------------------------


def evidence(weights: np.ndarray) -> str:
    return lstm_evidence({"lstm.weight_hh_l0": LazyTensor(weights.shape, lambda: weights)})


@pytest.mark.parametrize("width", [8, 64, 600])
def test_weights_tell_how_the_lstm_was_trained(width):
    rng = np.random.default_rng(width)
    bound, shape = width**-0.5, (4 * width, width)
    drawn = rng.uniform(-bound, bound, shape).astype(np.float32)
    assert evidence(np.zeros(shape, np.float32)) == "pointwise"
    assert evidence(drawn) == "pointwise"
    assert evidence(jnp.asarray(0.9 * drawn, jnp.bfloat16).__array__()) == "pointwise"
    assert evidence(0.6 * drawn) == "unclear"
    assert evidence((2 * bound * rng.normal(size=shape)).astype(np.float32)) == "sequence"


def test_an_lstm_that_looks_trained_otherwise_is_warned_of(checkpoint, caplog):
    read(checkpoint)
    assert not caplog.records
    weights = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    edit_tensors(checkpoint, lstm__weight_hh_l0=weights)
    with caplog.at_level(logging.WARNING):
        config, _ = read(checkpoint)
    assert config.lstm_mode is POINTWISE
    assert "read as pointwise; the recurrent weights look sequence" in caplog.text
    caplog.clear()
    edit_config(checkpoint, lstm_mode="pointwise")
    read(checkpoint)
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_copy_of_the_embedding_is_compared_in_the_targets_type(dtype, checkpoint, caplog):
    embedding = embedding_of(SYNTHETIC).astype(dtype)
    assert check_embedding(find_checkpoint(checkpoint), embedding) is True
    assert not caplog.records
    assert check_embedding(find_checkpoint(checkpoint), embedding.at[31, 7].add(1)) is False
    assert "embed_tokens.weight is not the target's embedding" in caplog.text
    assert check_embedding(find_checkpoint(checkpoint), embedding[:31]) is False


def test_a_directory_without_a_copy_has_nothing_to_compare(tmp_path):
    write_checkpoint(tmp_path, params_of(SYNTHETIC), SYNTHETIC)
    assert check_embedding(find_checkpoint(tmp_path), embedding_of(SYNTHETIC)) is None
