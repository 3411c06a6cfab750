"""A model in a GGUF file is the model of the Hugging Face directory that it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import check_digest, find_directory, weights_digest
from jspec.checkpoints.target import abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope, RopeKind
from jspec.models.model import build, random_params
from jspec.testing.decoding import full_logits
from jspec.testing.models import tiny_config
from tests.support.gguf_files import convert, gguf, write_file
from tests.support.pytrees import assert_same

TOKENS = [5, 17, 3, 60, 9, 9, 41, 22, 8, 30, 2, 55]
SIZES = dict(n_layers=2, width=32, mlp_width=64, n_heads=4, n_kv_heads=2)
"""Rows of 32 numbers and their multiples, as quantised blocks want them."""

LLAMA = tiny_config(**SIZES, norm_eps=1e-5, rope=Rope(theta=500_000.0))
CONFIGS = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, has_tied_head=True),
    "wide-heads": dataclasses.replace(LLAMA, head_dim=16),
    "biases": dataclasses.replace(LLAMA, has_qkv_bias=True, has_out_bias=True, has_mlp_bias=True),
    "mistral": dataclasses.replace(LLAMA, family="mistral", windows=(4, 4)),
    "qwen2": dataclasses.replace(LLAMA, family="qwen2", has_qkv_bias=True),
    "qwen2-windows": dataclasses.replace(LLAMA, family="qwen2", has_qkv_bias=True, windows=(4, 4)),
    "qwen3": dataclasses.replace(LLAMA, family="qwen3", has_qk_norm=True, head_dim=16),
}


def both(tmp_path: Path, config: DecoderConfig, **options) -> tuple[Path, Path]:
    """A random model, as a directory and as a file."""
    directory = tmp_path / "hf"
    params = random_params(build(config), key=jax.random.key(0), scale=0.3)
    write_checkpoint(directory, params, config, extra_config={"eos_token_id": 1})
    architecture = "llama" if config.family == "mistral" else config.family
    window = config.windows[0]
    more = {} if window is None else {f"{architecture}.attention.sliding_window": window}
    more |= {"tokenizer.ggml.eos_token_id": 1} | options.pop("more", {})
    return directory, convert(directory, tmp_path / "m.gguf", architecture, more=more, **options)


def logits(path: Path, **options) -> np.ndarray:
    return full_logits(load_target(path, **options), TOKENS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_and_a_directory_are_one_model(name, tmp_path):
    directory, file = both(tmp_path, CONFIGS[name])
    one, other = load_target(directory), load_target(file)
    assert other.model.config == one.model.config
    assert (other.stop_ids, other.max_length) == (one.stop_ids, one.max_length)
    assert_same(other.params, one.params)
    np.testing.assert_array_equal(logits(file), logits(directory))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_1"])
def test_quantised_matrices_are_dequantised(kind, tmp_path):
    directory, file = both(tmp_path, LLAMA, kind=kind)
    np.testing.assert_array_equal(logits(file), logits(directory))


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}])
def test_a_file_is_loaded_in_the_types_that_are_asked_for(options, tmp_path):
    directory, file = both(tmp_path, CONFIGS["tied"], kind="Q8_0")
    assert load_target(file, **options).types == load_target(directory, **options).types
    np.testing.assert_array_equal(logits(file, **options), logits(directory, **options))
    assert not np.array_equal(logits(file, **options), logits(file))


def test_a_rotary_embedding_is_stretched_linearly(tmp_path):
    rope = Rope(kind=RopeKind.LINEAR, theta=10_000.0, factor=4.0)
    more = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    directory, file = both(tmp_path, dataclasses.replace(LLAMA, rope=rope), more=more)
    assert load_target(file).max_length == 4 * LLAMA.max_positions
    np.testing.assert_array_equal(logits(file), logits(directory))


def test_older_files_tell_the_linear_factor_in_another_key(tmp_path):
    rope = Rope(kind=RopeKind.LINEAR, theta=10_000.0, factor=2.0)
    config = dataclasses.replace(LLAMA, rope=rope)
    _, file = both(tmp_path, config, more={"llama.rope.scale_linear": 2.0})
    assert find_checkpoint(file).config.rope == rope


def test_a_rotary_embedding_is_stretched_by_yarn(tmp_path):
    length = LLAMA.max_positions
    rope = Rope(kind=RopeKind.YARN, theta=10_000.0, factor=4.0, original_length=length // 2)
    prefix = "qwen2.rope.scaling."
    more = {f"{prefix}type": "yarn", f"{prefix}factor": 4.0}
    more[f"{prefix}original_context_length"] = length // 2
    config = dataclasses.replace(CONFIGS["qwen2"], rope=rope)
    directory, file = both(tmp_path, config, more=more)
    assert load_target(file).max_length == 2 * length
    np.testing.assert_array_equal(logits(file), logits(directory))


def test_a_scaling_of_the_kind_none_is_none(tmp_path):
    more = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    directory, file = both(tmp_path, LLAMA, more=more)
    assert find_checkpoint(file).config == find_checkpoint(directory).config


def test_the_factors_of_llama_3_stretch_each_frequency(tmp_path):
    """They are what the converter makes of the four numbers in `config.json`."""
    rope = Rope(
        kind=RopeKind.LLAMA3,
        theta=500.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_length=64,
    )
    config = dataclasses.replace(LLAMA, rope=rope)
    factors = []
    for i in range(config.head_dim // 2):
        turns = 64 / (2 * math.pi * 500.0 ** (2 * i / config.head_dim))
        smooth = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    assert 1 < max(factors) <= 8 and min(factors) == 1
    tensors = {"rope_freqs.weight": np.array(factors, np.float32)}
    directory, file = both(tmp_path, config, more_tensors=tensors)
    one, other = find_checkpoint(directory).config, find_checkpoint(file).config
    (ours, scale), (theirs, _) = (c.rope.frequencies(c.head_dim) for c in (other, one))
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)
    assert scale == 1.0 and other.max_length == one.max_length
    np.testing.assert_allclose(logits(file), logits(directory), atol=1e-4)


def test_an_end_of_turn_stops_too(tmp_path):
    _, file = both(tmp_path, LLAMA, more={"tokenizer.ggml.eot_token_id": 7})
    assert find_checkpoint(file).stop_ids == (1, 7)


def test_the_digest_is_that_of_the_file(tmp_path):
    _, file = both(tmp_path, LLAMA)
    assert weights_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    check_digest(file, weights_digest(file))
    with pytest.raises(UserError, match=re.escape(f"{file}: expected the weights with digest")):
        check_digest(file, "0" * 64)


def test_a_file_that_changes_is_read_again(tmp_path):
    _, file = both(tmp_path, LLAMA)
    before = find_checkpoint(file)
    write_file(file, "llama", {"llama.context_length": 8}, {})
    assert before.config.max_positions == LLAMA.max_positions
    refused(file, "llama.embedding_length must be")


def test_shapes_alone_need_no_weights(tmp_path):
    _, file = both(tmp_path, LLAMA)
    assert find_directory(file) == file and find_directory(tmp_path / "no.gguf") is None
    checkpoint = find_checkpoint(file, downloads=False)
    assert checkpoint.origin == str(file)
    assert abstract_target(checkpoint, dtype="float32", mesh=load_target(file).mesh).is_abstract


# --- faults --------------------------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    """Loading raises one line that begins with the file and matches."""
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{message}") as error:
        load_target(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata, told",
    [
        ({"general.architecture": "gemma3"}, "architecture 'gemma3' .*known: llama, mistral, qwen"),
        ({"split.count": 3}, "one of the 3 parts of a split model"),
        ({"llama.expert_count": 8}, "llama.expert_count 8 is not supported"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale 0.5 is not supported"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count must be 8"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported; known: none, "),
        ({"llama.block_count": None}, "llama.block_count must be .*, got nothing"),
        ({"llama.feed_forward_length": [64, 32]}, "the same whole number for all layers, got .64"),
        ({"llama.attention.head_count": 3}, "key/value heads must divide 3 query heads"),
        ({"llama.attention.sliding_window_pattern": 2}, "window_pattern is not supported"),
        ({"llama.rope.scaling.yarn_attn_factor": 0.7}, "yarn_attn_factor 0.7 is not supported"),
        ({"llama.feed_forward_length": 96}, "do not fit its metadata: wrong shapes: 6 tensors"),
    ],
)
def test_what_is_not_supported_is_named(metadata, told, tmp_path):
    if "llama.attention.sliding_window_pattern" in metadata:
        metadata |= {"llama.attention.sliding_window": 4}
    config = dataclasses.replace(LLAMA, head_dim=8)
    _, file = both(tmp_path, config)
    more = metadata | {"llama.attention.key_length": 8}
    convert(tmp_path / "hf", file, "llama", more=more)
    refused(file, told)


def test_tensors_of_other_names_are_named(tmp_path):
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    _, file = both(tmp_path, LLAMA, more_tensors=extra)
    refused(file, "do not fit its metadata: unexpected 1 tensors .blk.0.attn_sinks.weight")


def test_missing_tensors_are_named(tmp_path):
    _, file = both(tmp_path, LLAMA, more={"llama.block_count": 3})
    refused(file, "its metadata: missing 9 tensors .blk.2")


@pytest.mark.parametrize("size", [0, 3, 40, 700, -100])
def test_a_file_that_ends_too_early_is_refused(size, tmp_path):
    _, file = both(tmp_path, LLAMA)
    file.write_bytes(file.read_bytes()[:size])
    refused(file, "not a whole GGUF file .*: the file is incomplete or corrupt")


def test_other_bytes_are_refused(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\3\4" * 100)
    refused(file, "not a whole GGUF file .GGUF magic invalid")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(file, "a git-lfs pointer")


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "no.gguf", "no such file; check the path")
    with pytest.raises(UserError, match="org/name.gguf: no such file"):
        load_target("org/name.gguf")


def test_a_type_that_the_library_cannot_read_is_named(tmp_path, monkeypatch):
    _, file = both(tmp_path, LLAMA)

    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", refuse)
    refused(file, "tensor .* has type F32, which the gguf library cannot dequantise")


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    _, file = both(tmp_path, LLAMA)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    refused(file, r"pip install 'jspec-decoding\[gguf\]'")


def test_layers_beyond_the_metadata_are_left_out(tmp_path, caplog):
    _, file = both(tmp_path, LLAMA, more={"llama.block_count": 1})
    with caplog.at_level(logging.WARNING):
        assert len(load_target(file).params["layers"]) == 1
    assert "the weights have 2 layers, the metadata asks for 1" in caplog.text
