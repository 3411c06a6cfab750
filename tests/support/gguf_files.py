"""GGUF files of tiny models, written with the library's own writer from Hugging Face directories.

Names, order of rows and keys are written down here once more, so that a mistake in what reads them
is seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

NORMAL, CONTROL = 1, 3
"""Types of tokens."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name of a Hugging Face tensor in a GGUF file."""
    module, _, kind = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def permuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's rotary embedding wants them: rotary pairs are neighbours."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def metadata_of(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """What a converter would write of a `config.json`, but for the rotary scaling."""
    values = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def write_file(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, Any]],
) -> Path:
    """Write a file of metadata and tensors, each with its type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(
    directory: Path,
    path: Path,
    architecture: str,
    *,
    kind: str = "F32",
    more: Mapping[str, Any] | None = None,
    more_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the model of a Hugging Face directory as a GGUF file.

    The directory's matrices are replaced by what the quantised ones stand for, so that both are the
    same model.

    Args:
      kind: type of the matrices; vectors are float32 always.
      more: metadata, over that of the directory; None takes a key away.
      more_tensors: float32.
    """
    from safetensors.numpy import load_file, save_file

    config = json.loads((directory / "config.json").read_text())
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    originals, tensors = load_file(directory / "model.safetensors"), {}
    for name, array in originals.items():
        as_kind = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        originals[name] = gguf.dequantize(gguf.quantize(array, as_kind), as_kind)
        part = name.split(".")[-2]
        if part in heads and architecture == "llama":
            array = permuted(array, config[heads[part]])
        tensors[gguf_name(name)] = array, as_kind
    save_file(originals, directory / "model.safetensors", metadata={"format": "pt"})
    for name, array in (more_tensors or {}).items():
        tensors[name] = array, gguf.GGMLQuantizationType.F32
    metadata = metadata_of(config, architecture) | dict(more or {})
    kept = {key: value for key, value in metadata.items() if value is not None}
    return write_file(path, architecture, kept, tensors)


def byte_level_metadata(path: Path, **more) -> dict:
    """What a converter writes of a byte-level `tokenizer.json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    pieces = dict(content["model"]["vocab"])
    special = {each["content"]: each for each in content["added_tokens"]}
    pieces |= {text: each["id"] for text, each in special.items()}
    tokens = sorted(pieces, key=pieces.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [CONTROL if t in special else NORMAL for t in tokens],
        "merges": merges,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | more).items()}
