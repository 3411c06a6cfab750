"""Tiny checkpoints of every family, whose weights are regenerated from a seed, never stored.

`CASES` are the arguments of `transformers` config classes. The golden vectors of the tests were
made from exactly these by `tests/goldens/make.py`, and the live comparison uses them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=None,
)


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | fields}


_LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
_YARN = dict(factor=4.0, original_max_position_embeddings=64)
_YARN_DEEP = _YARN | dict(mscale=1.0, mscale_all_dim=0.7, truncate=False, beta_fast=16.0)
_LONGROPE = dict(
    factor=4.0,
    short_factor=[1.0, 1.1, 1.3, 1.7],
    long_factor=[2.0, 2.5, 3.0, 4.0],
    original_max_position_embeddings=256,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SIZES),
    "llama_tied_full_heads": (
        "Llama",
        _SIZES | dict(tie_word_embeddings=True, num_key_value_heads=4, head_dim=16),
    ),
    "llama_biases": ("Llama", _SIZES | dict(attention_bias=True, mlp_bias=True)),
    "llama_linear": ("Llama", _SIZES | _rope("linear", factor=2.0)),
    "llama_llama3": ("Llama", _SIZES | _rope("llama3", **_LLAMA3)),
    "llama_longrope": ("Llama", _SIZES | _rope("longrope", **_LONGROPE)),
    "mistral_window": ("Mistral", _SIZES | dict(sliding_window=7, head_dim=12)),
    "mistral": ("Mistral", _SIZES | dict(sliding_window=None, num_attention_heads=8)),
    "qwen2": ("Qwen2", _SIZES | dict(tie_word_embeddings=True)),
    "qwen2_some_windows": (
        "Qwen2",
        _SIZES | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    ),
    "qwen2_yarn": ("Qwen2", _SIZES | _rope("yarn", **_YARN)),
    "qwen2_yarn_deep": ("Qwen2", _SIZES | _rope("yarn", **_YARN_DEEP)),
    "qwen3": ("Qwen3", _SIZES | dict(head_dim=16, tie_word_embeddings=True)),
    "qwen3_layer_types": (
        "Qwen3",
        _SIZES
        | dict(
            head_dim=16,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
}
"""Family and config of each case."""

PROMPT_TOKENS = 40


def prompt_of(case: str) -> list[int]:
    """A random prompt, longer than every sliding window."""
    rng = np.random.default_rng(list(CASES).index(case))
    return rng.integers(0, _SIZES["vocab_size"], PROMPT_TOKENS).tolist()


def random_tensors(
    shapes: dict[str, list[int]], seed: int = 0, dtype=np.float32
) -> dict[str, np.ndarray]:
    """Weights by name: matrices and biases of deviation 0.2, norms around 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(shapes):
        values = 0.2 * rng.standard_normal(shapes[name])
        tensors[name] = (values + 1 if "norm" in name else values).astype(dtype)
    return tensors


def write_directory(
    directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Path:
    """A checkpoint directory of one safetensors file, written without the library under test."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
