"""What a GGUF file's metadata say of its decoder, in the words of a `config.json`.

In reading order: `config_values`, with the rotary embedding and the windows; `gguf_layout`, the
names of the weights. What is read from these values, and how it is checked, is in `hf_config.py`.

Differences to Hugging Face's files that matter: the head is tied where there is no `output.weight`;
biases are there where their tensors are; the rows of q and k of a llama are in the order of rotary
pairs; and the scaling of Llama 3.1 is a tensor of factors, one for every frequency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jspec.checkpoints.gguf.file import GgufFile
from jspec.checkpoints.layouts import GGUF, Layout
from jspec.errors import UserError

_IN_PAIRS = ("llama", "mistral")
ARCHITECTURES = (*_IN_PAIRS, "qwen2", "qwen3")
"""Values of `general.architecture` that are read; most files of a Mistral say `llama`."""

_REFUSED = (
    *("expert_count", "attention.scale", "attention.clamp_kqv", "attention.temperature_scale"),
    *("logit_scale", "residual_scale", "embedding_scale"),
    *("attn_logit_softcapping", "final_logit_softcapping", "rope.dimension_sections"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"),
)
"""Keys of an architecture that change what is computed, unless they are 0, or 1 in the scaling."""

_FREQUENCIES = "rope_freqs.weight"


def config_values(file: GgufFile) -> dict[str, Any]:
    """Say what a `config.json` of this model would, token ids included.

    Raises:
      UserError: another architecture, an option that is not supported, or a missing value.
    """
    name = file.text("general.architecture", "")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{file.path}: architecture {name!r} is not supported; known: "
            f"{', '.join(ARCHITECTURES)}"
        )
    for key in _REFUSED:
        value = file.metadata.get(f"{name}.{key}")
        if value and not (value == 1 and key.startswith("rope.scaling")):
            raise UserError(f"{file.path}: {name}.{key} {value!r} is not supported")
    width, heads = (
        file.integer(f"{name}.{key}") for key in ("embedding_length", "attention.head_count")
    )
    head_dim = file.integer(f"{name}.attention.key_length", width // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        given = file.integer(f"{name}.{key}", head_dim)
        if given != head_dim:
            raise UserError(f"{file.path}: {name}.{key} must be {head_dim}, the width of a head")
    n_layers = file.integer(f"{name}.block_count")
    embedding = file.tensors.get("token_embd.weight")
    windows = _windows(file, name, n_layers)
    return {
        "model_type": "mistral" if windows and name == "llama" else name,
        "vocab_size": embedding.shape[0] if embedding else file.integer(f"{name}.vocab_size"),
        "hidden_size": width,
        "intermediate_size": file.integer(f"{name}.feed_forward_length"),
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.integer(f"{name}.context_length"),
        "rms_norm_eps": file.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "is_causal": file.flag(f"{name}.attention.causal", True),
        "rope_theta": file.number(f"{name}.rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(file, name),
        "sliding_window": None,
        "dtype": "float32",  # of what is read, however it is stored
        **windows,
        **_token_ids(file),
    }


def _token_ids(file: GgufFile) -> dict[str, Any]:
    """Find the ids that begin and end a text; the end of a turn ends it too."""
    ends = [
        file.integer(key)
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        if key in file.metadata
    ]
    begins = file.metadata.get("tokenizer.ggml.bos_token_id")
    return {"bos_token_id": begins, "eos_token_id": ends or None}


def _rope_scaling(file: GgufFile, name: str) -> dict[str, Any] | None:
    """Read how the rotary embedding is stretched, in the fields of a `config.json`."""
    prefix, longest = f"{name}.rope.scaling.", file.integer(f"{name}.context_length")
    factor = file.number(f"{prefix}factor", file.number(f"{name}.rope.scale_linear", 0.0)) or 1.0
    kind = file.text(f"{prefix}type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(
            f"{file.path}: {prefix}type {kind!r} is not supported; known: none, linear, yarn"
        )
    is_stretched = factor != 1 and kind != "none"
    if _FREQUENCIES in file.tensors:
        if is_stretched:
            raise UserError(f"{file.path}: {prefix}factor beside {_FREQUENCIES} is not supported")
        factors = [float(each) for each in file.tensors[_FREQUENCIES].read()]
        return {
            "rope_type": "longrope",  # without a stretched length it is a factor a frequency
            "factor": 1.0,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": longest,
        }
    if not is_stretched:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        original = file.integer(f"{prefix}original_context_length", longest)
        scaling["original_max_position_embeddings"] = original
        scaling["beta_fast"] = file.number(f"{prefix}yarn_beta_fast", 32.0)
        scaling["beta_slow"] = file.number(f"{prefix}yarn_beta_slow", 1.0)
    return scaling


def _windows(file: GgufFile, name: str, n_layers: int) -> dict[str, Any]:
    """Read the sliding window; empty where every layer sees the whole text."""
    key = f"{name}.attention.sliding_window"
    if not file.metadata.get(key):
        return {}
    if f"{key}_pattern" in file.metadata:
        raise UserError(f"{file.path}: {key}_pattern is not supported")
    return {
        "use_sliding_window": True,
        "sliding_window": file.integer(key),
        "layer_types": ["sliding_attention"] * n_layers,
    }


def gguf_layout(values: Mapping[str, Any]) -> Layout:
    """Find how the weights are named and ordered, from what `config_values` said."""
    return dataclasses.replace(GGUF, is_interleaved=values["model_type"] in _IN_PAIRS)
