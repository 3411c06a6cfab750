"""Checkpoint directories: what is written is read back exactly, and faults are one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.target import load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.model import build, random_params
from jspec.testing.models import tiny_config
from tests.support.pytrees import assert_same

CONFIG = tiny_config(has_qkv_bias=True, has_out_bias=True)
Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


def params_of(config=CONFIG, dtype="float32"):
    return random_params(build(config), key=jax.random.key(0), dtype=dtype, scale=0.3)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A good directory, for tests that spoil it."""
    write_checkpoint(tmp_path / "good", params_of(), CONFIG)
    return tmp_path / "good"


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def save(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, directory / "model.safetensors")


def refused(directory, message: str, **options) -> None:
    """Loading raises one line that matches."""
    with pytest.raises(UserError, match=message) as error:
        load_target(directory, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_is_exact(dtype, max_shard_bytes, tmp_path):
    params = params_of(dtype=dtype)
    write_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=max_shard_bytes)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_shard_bytes == 20_000)
    if index.exists():
        content = json.loads(index.read_text())
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        assert content["metadata"]["total_size"] == size
        assert len(set(content["weight_map"].values())) > 2
    target = load_target(tmp_path, dtype=dtype)
    assert target.model.config == CONFIG and target.dtype == dtype
    assert_same(target.params, params)


def test_writing_again_leaves_nothing_of_the_first(tmp_path):
    write_checkpoint(tmp_path, params_of(), CONFIG, max_shard_bytes=20_000)
    config = tiny_config()
    write_checkpoint(tmp_path, params_of(config), config)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert_same(load_target(tmp_path).params, params_of(config))


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
def test_stored_types_are_converted_on_the_way_in(stored, checkpoint):
    tensors = {name: x.astype(jnp.dtype(stored)) for name, x in tensors_of(checkpoint).items()}
    save(checkpoint, tensors)
    wanted = tensors["model.embed_tokens.weight"].astype(np.float32)
    target = load_target(checkpoint)
    np.testing.assert_array_equal(target.params["embedding"], wanted)
    target = load_target(checkpoint, dtype="bfloat16")
    np.testing.assert_array_equal(target.params["embedding"], wanted.astype(jnp.bfloat16))


def test_parameters_do_not_hang_on_the_file(checkpoint):
    target = load_target(checkpoint)
    file = checkpoint / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert_same(target.params, params_of())


def test_harmless_extra_tensors_are_ignored(tmp_path):
    config = tiny_config(has_tied_head=True)
    write_checkpoint(tmp_path, params_of(config), config)
    extra = {
        "lm_head.weight": tensors_of(tmp_path)["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros((4,), np.float32),
    }
    save(tmp_path, tensors_of(tmp_path) | extra)
    assert_same(load_target(tmp_path).params, params_of(config))


def test_all_tensors_that_do_not_fit_are_told_at_once(checkpoint):
    tensors = tensors_of(checkpoint)
    del tensors[Q]
    tensors |= {K: np.zeros((3, 32), np.float32), "extra.weight": np.zeros((1,), np.float32)}
    save(checkpoint, tensors)
    refused(checkpoint, f"missing 1 tensors.*{Q}.*unexpected 1.*extra.weight.*{K}.*instead of")


def test_a_config_of_another_size_names_the_tensors(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    refused(checkpoint, r"missing 13 tensors \(.*, .*, .* and 10 more\)")


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_safetensors(kept, checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(checkpoint, "model.safetensors: .*incomplete or corrupt; download it again")


def test_corrupt_safetensors(checkpoint):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 8 + content[8:])
    refused(checkpoint, "no valid safetensors header .header too large.: .*download it again")
    file.write_bytes(re.sub(rb'"shape":\[\d+', b'"shape":[9', content, count=1))
    refused(checkpoint, "no valid safetensors header .invalid .*download it again")


def with_header(file: Path, change) -> None:
    """Change the header of a safetensors file, and leave its data."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": ["a", "b"]},
        {"data_offsets": [0.0, 4096.0]},
        {"data_offsets": [0, True]},
        {"shape": [-32, -32]},
        {"shape": [32.0, 32]},
        {"shape": "32"},
        {"dtype": ["F32"]},
    ],
)
def test_headers_of_wrong_types(entry, checkpoint):
    with_header(checkpoint / "model.safetensors", lambda header: header[Q].update(entry))
    refused(checkpoint, "no valid safetensors header .invalid JSON.*: .*download it again")


def test_a_header_nested_too_deeply(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    refused(checkpoint, "no valid safetensors header .invalid JSON.*: .*download it again")


def test_bytes_that_belong_to_two_tensors_or_to_none(checkpoint):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content + b"more")
    refused(checkpoint, "no valid .*file not fully covered.: .*download it again")
    file.write_bytes(content)
    other = Q.replace("q_proj", "o_proj")
    with_header(file, lambda header: header[Q].update(data_offsets=header[other]["data_offsets"]))
    refused(checkpoint, "no valid .*invalid offset for tensor.*download it again")
    file.write_bytes(content)
    with_header(file, lambda header: header.pop(Q) and None)
    refused(checkpoint, "no valid .*invalid offset for tensor.*download it again")


def test_a_quantised_tensor(checkpoint):
    save(checkpoint, tensors_of(checkpoint) | {Q: np.zeros((32, 32), np.int8)})
    refused(checkpoint, f"{Q} has type I8")


def test_missing_shards_and_broken_indexes(tmp_path):
    write_checkpoint(tmp_path, params_of(), CONFIG, max_shard_bytes=20_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    refused(tmp_path, f"1 of {len(shards)} shards .* missing, the first is {shards[1].name}")
    index = tmp_path / "model.safetensors.index.json"
    for broken in ("{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}'):
        index.write_text(broken)
        refused(tmp_path, "no weight_map")
    index.write_text("{")
    refused(tmp_path, "index.json: not readable as JSON")


def test_broken_directories(checkpoint, tmp_path):
    refused(tmp_path / "nowhere", "no such directory")
    refused(checkpoint / "config.json", "is a file; give the checkpoint directory")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config[:-5])
    refused(checkpoint, "config.json: not readable as JSON")
    (checkpoint / "config.json").write_text("[]")
    refused(checkpoint, "expected a JSON object, got list")
    (checkpoint / "config.json").write_text(config.replace("llama", "mixtral"))
    refused(checkpoint, f"{checkpoint}/config.json: model type 'mixtral'")
    (checkpoint / "config.json").write_text(config)
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "no weights: expected model.safetensors.*there is only config.json")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "config.json: no such file; the directory is empty")


def test_unknown_types_are_refused(checkpoint):
    refused(checkpoint, "dtype must be one of float32, bfloat16.* got 'int8'", dtype="int8")
    refused(checkpoint, "got 'half-ish'", dtype="half-ish")
    refused(checkpoint, "float64 needs 64-bit mode: set JAX_ENABLE_X64=1", dtype="float64")


def test_bin_shards_without_torch_name_the_extra(checkpoint, monkeypatch):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(checkpoint, r"need torch: pip install 'jspec-decoding\[torch\]'")


def test_a_hub_id_without_network_points_to_a_directory():
    """Another process: the hub's client reads its environment once."""
    code = "import jspec.checkpoints.target as t; t.load_target('owner/no-such-model')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    last = done.stderr.decode().strip().splitlines()[-1]
    assert "UserError: owner/no-such-model: no such directory here, not whole in the hub's" in last
    assert last.endswith(
        "HF_HUB_OFFLINE forbids to fetch it; unset that, or give the directory of a checkpoint"
    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("GatedRepoError", "asks for consent; give it there, and set HF_TOKEN"),
        ("RepositoryNotFoundError", "not on the hub either; check the name"),
        ("LocalEntryNotFoundError", "the hub is out of reach; connect to a network, or give"),
        ("RevisionNotFoundError", r"the hub cannot be used \(RevisionNotFoundError\); give"),
    ],
)
def test_the_hub_s_refusals_are_told_in_our_words(name, said, monkeypatch):
    kind = getattr(huggingface_hub.errors, name)

    def refuse(*_, **__):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=f"owner/model: no such directory here, .*{said}"):
        local_directory("owner/model")


@pytest.mark.parametrize(
    "generation, config, wanted",
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 2}, (7, 9)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({}, {"eos_token_id": [2, 3, 2]}, (2, 3)),
        (None, {"eos_token_id": 0}, (0,)),
        (None, {"eos_token_id": None}, ()),
    ],
)
def test_stop_ids(generation, config, wanted, tmp_path):
    write_checkpoint(tmp_path, params_of(), CONFIG, extra_config=config)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_target(tmp_path).stop_ids == wanted


def test_what_else_a_generation_config_says_is_ignored_with_a_warning(checkpoint, caplog):
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps({"repetition_penalty": 1.05, "temperature": 0.6}))
    target = load_target(checkpoint)
    assert "repetition_penalty 1.05 is ignored" in caplog.text
    assert target.stop_ids == () and target.max_length == CONFIG.max_length
    for wrong in ("two", True, -1, [[2]]):
        path.write_text(json.dumps({"eos_token_id": wrong}))
        refused(checkpoint, "generation_config.json: eos_token_id must be a token id.* got .*;")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": None}, "dtype must be one of float32.*got None"),
        ({"dtype": "float16"}, "dtype must be one of float32"),
        ({"mesh": 2}, "mesh: expected what jspec.make_mesh returns, given 2"),
    ],
)
def test_options_of_a_target_are_checked(options, told, tmp_path):
    with pytest.raises(UserError, match=told):
        load_target(tmp_path, **options)
