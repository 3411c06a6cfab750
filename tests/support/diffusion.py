"""Tiny checkpoints of diffusion models by their published names, made without the library.

Source: the names, shapes and configurations of Dream-7B and LLaDA-8B, shrunk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jspec.models.diffusion import all_masks, normalised, read_window, scratch
from tests.support.checkpoints import random_tensors, write_directory

MASK = 120

DREAM: dict[str, Any] = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "attention_dropout": 0.0,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "mask_token_id": MASK,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 128,
}

LLADA: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_size": 128,
    "eos_token_id": 3,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": MASK,
    "max_sequence_length": 256,
    "mlp_hidden_size": 64,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500_000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": 128,
    "weight_tying": False,
}

CONFIGS = {"dream": DREAM, "llada": LLADA}


def shapes_of(values: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor of a checkpoint by its published name, output axis first."""
    return _dream_shapes(values) if values["model_type"] == "Dream" else _llada_shapes(values)


def _dream_shapes(values: dict[str, Any]) -> dict[str, list[int]]:
    D, F, V = (values[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    K = D // values["num_attention_heads"] * values["num_key_value_heads"]
    shapes = {
        "model.embed_tokens.weight": [V, D],
        "model.norm.weight": [D],
        "lm_head.weight": [V, D],
    }
    for i in range(values["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": [D],
            "self_attn.q_proj.weight": [D, D],
            "self_attn.q_proj.bias": [D],
            "self_attn.k_proj.weight": [K, D],
            "self_attn.k_proj.bias": [K],
            "self_attn.v_proj.weight": [K, D],
            "self_attn.v_proj.bias": [K],
            "self_attn.o_proj.weight": [D, D],
            "post_attention_layernorm.weight": [D],
            "mlp.gate_proj.weight": [F, D],
            "mlp.up_proj.weight": [F, D],
            "mlp.down_proj.weight": [D, F],
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _llada_shapes(values: dict[str, Any]) -> dict[str, list[int]]:
    D, F, V = (values[name] for name in ("d_model", "mlp_hidden_size", "embedding_size"))
    K = D // values["n_heads"] * values["n_kv_heads"]
    shapes = {
        "model.transformer.wte.weight": [V, D],
        "model.transformer.ln_f.weight": [D],
        "model.transformer.ff_out.weight": [V, D],
    }
    size = values["block_group_size"]
    for i in range(values["n_layers"]):
        place = f"blocks.{i}" if size == 1 else f"block_groups.{i // size}.{i % size}"
        layer = {
            "attn_norm.weight": [D],
            "q_proj.weight": [D, D],
            "k_proj.weight": [K, D],
            "v_proj.weight": [K, D],
            "attn_out.weight": [D, D],
            "ff_norm.weight": [D],
            "ff_proj.weight": [F, D],
            "up_proj.weight": [F, D],
            "ff_out.weight": [D, F],
        }
        shapes |= {f"model.transformer.{place}.{name}": shape for name, shape in layer.items()}
    return shapes


def tensors_of(values: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that make every tensor matter; norms around 1."""
    tensors = random_tensors(shapes_of(values), seed)
    return {name: x + 1 if name.endswith("ln_f.weight") else x for name, x in tensors.items()}


def write_tiny(directory: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """A directory of a tiny "dream" or "llada"; `changes` override its `config.json`."""
    values = CONFIGS[kind] | changes
    return write_directory(directory, values, tensors_of(values, seed))


def in_llama_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """LLaDA's tensors by the names of a Llama; others stay as they are."""
    words = {
        "attn_norm": "input_layernorm",
        "attn_out": "self_attn.o_proj",
        "ff_norm": "post_attention_layernorm",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    } | {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkv"}
    top = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    renamed = {}
    for name, x in tensors.items():
        parts = name.removeprefix("model.transformer.").split(".")
        if parts[0] in top:
            renamed[f"{top[parts[0]]}.weight"] = x
        elif parts[0] == "blocks":
            renamed[f"model.layers.{parts[1]}.{words[parts[2]]}.{parts[3]}"] = x
        else:
            renamed[name] = x
    return renamed


def slot_logprobs(params, model, tokens, length, slots):
    """Log-probabilities of the slots after right-padded texts, from one pass over all of them."""
    rows, width = tokens.shape[0], tokens.shape[1] + slots.n_masks
    cache, start = scratch(params, model, rows, width), jnp.zeros_like(length)
    block = all_masks(model, rows, slots)
    logits, _ = read_window(
        params, model, cache, tokens, length, start, block, width, n_slots=slots.count
    )
    return normalised(logits, model.config)
