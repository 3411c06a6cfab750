"""Configs in and out of `config.json`, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jspec.checkpoints.hf_config import read_hf_config, write_hf_config
from jspec.errors import UserError
from jspec.models.config import Rope, RopeKind
from jspec.testing.models import tiny_config

CASES = json.loads((Path(__file__).parents[1] / "goldens" / "cases.json").read_text())
LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_written_back(case):
    config = read_hf_config(CASES[case]["config"])
    written = write_hf_config(config)
    assert read_hf_config(json.loads(json.dumps(written))) == config
    theirs = CASES[case]["config"]
    same = ("vocab_size", "hidden_size", "max_position_embeddings", "tie_word_embeddings")
    assert {name: written[name] for name in same} == {name: theirs[name] for name in same}
    assert written["architectures"] == theirs["architectures"]


def test_bidirectional_models_stay_bidirectional():
    config = tiny_config(is_causal=False)
    assert read_hf_config(write_hf_config(config)) == config


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_both_published_styles_of_rope_are_one(kind, name):
    scaling = {"factor": 8.0, "original_max_position_embeddings": 64} | LLAMA3
    values = LLAMA | {"max_position_embeddings": 512}
    old = values | {"rope_theta": 5e5, "rope_scaling": {name: kind} | scaling}
    new = values | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5} | scaling}
    assert read_hf_config(old) == read_hf_config(new)
    assert read_hf_config(old).rope.theta == 5e5


def test_left_out_values_have_the_defaults_of_the_family():
    llama = read_hf_config(LLAMA)
    assert (llama.n_kv_heads, llama.head_dim, llama.norm_eps) == (4, 8, 1e-6)
    assert not llama.has_tied_head and not llama.has_qkv_bias and llama.windows == (None, None)
    mistral = read_hf_config({"model_type": "mistral", "num_hidden_layers": 1})
    assert (mistral.n_kv_heads, mistral.windows) == (8, (4096,))
    qwen = read_hf_config(LLAMA | {"model_type": "qwen2", "num_key_value_heads": None})
    assert qwen.has_qkv_bias and not qwen.has_out_bias and qwen.n_kv_heads == 4
    qwen3 = read_hf_config(LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2})
    assert qwen3.has_qk_norm and not qwen3.has_qkv_bias and qwen3.head_dim == 128


def test_biases_are_added_where_the_class_of_the_family_reads_them():
    values = LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}
    biases = {}
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        config = read_hf_config(values | {"model_type": family})
        biases[family] = (config.has_qkv_bias, config.has_out_bias, config.has_mlp_bias)
    assert biases == {
        "llama": (True, True, True),
        "mistral": (False, False, False),
        "qwen2": (True, False, False),
        "qwen3": (True, True, False),
    }


def test_architectures_stand_in_for_a_missing_model_type():
    values = {name: value for name, value in LLAMA.items() if name != "model_type"}
    config = read_hf_config(values | {"architectures": ["LlamaForCausalLM"]})
    assert config == read_hf_config(LLAMA)


def test_windows_of_qwen_start_at_the_named_layer():
    values = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 5}
    windowed = values | {"use_sliding_window": True, "max_window_layers": 1}
    assert read_hf_config(values).windows == (None, None)
    assert read_hf_config(windowed).windows == (None, 5)


def test_longest_text_follows_the_scaling():
    positions = {"max_position_embeddings": 64}
    original = {"original_max_position_embeddings": 64}

    def longest(**scaling):
        return read_hf_config(LLAMA | positions | {"rope_scaling": scaling}).max_length

    assert longest(rope_type="default") == 64
    assert longest(rope_type="linear", factor=4.0) == 256
    assert longest(rope_type="yarn", factor=4.0, **original) == 256
    assert longest(rope_type="yarn", factor=4.0, original_max_position_embeddings=8) == 64
    assert longest(rope_type="llama3", **LLAMA3, original_max_position_embeddings=16) == 64
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    short = {"original_max_position_embeddings": 16}
    assert longest(rope_type="longrope", factor=4.0, **factors, **short) == 16


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_a_factor_of_attention_that_is_given_overrides_the_derived_one(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 16} | factors

    def factor(**given) -> float:
        rope = read_hf_config(LLAMA | {"rope_scaling": scaling | given}).rope
        return rope.frequencies(8)[1]

    assert factor() > 1 and factor(attention_factor=0.7) == 0.7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mixtral"}, "'mixtral' is not supported; known: llama, mistral, qwen2"),
        ({"model_type": None, "architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, got '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_key_value_heads": 3}, "3 key/value heads must divide 4 query heads"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, got inf"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is refused"),
        ({"rope_scaling": {"type": "warp"}}, "'warp' is not supported; known: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor cannot be '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": [2]}, "must be an object"),
        ({"rope_parameters": {"full_attention": {}}}, "per layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "must name 2 layers"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "use_sliding_window"),
    ],
)
def test_what_we_do_not_know_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        read_hf_config(LLAMA | changes)
    assert "\n" not in str(error.value)


def test_a_config_checks_itself():
    with pytest.raises(ValueError, match="windows for 2 layers"):
        tiny_config(windows=(1, 2, 3))
    with pytest.raises(ValueError, match="at least 1"):
        tiny_config(windows=(0, None))
    with pytest.raises(ValueError, match="needs factor"):
        Rope(kind=RopeKind.LINEAR)
    with pytest.raises(ValueError, match="cannot express"):
        write_hf_config(tiny_config(windows=(4, None)))
