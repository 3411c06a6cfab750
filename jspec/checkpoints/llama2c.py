"""Directories in the style of llama2.c: a `config.json` with `"arch": "llama"`.

The model is a plain Llama; only the names of fields and weights, and the order of rotary pairs,
differ (`layouts.LLAMA2C`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope

_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "dim",
    "mlp_width": "hidden_dim",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "n_kv_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "max_positions": "max_seq_len",
}


def is_llama2c(values: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of these."""
    return "arch" in values and "model_type" not in values


def read_llama2c_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that such a `config.json` describes."""
    if values["arch"] != "llama":
        raise UserError(f"config.json: arch must be 'llama', got {values['arch']!r}")
    if values.get("sub_norm"):
        raise UserError(
            "config.json: sub_norm (norms inside attention and MLP) is not supported; "
            "give a plain Llama"
        )
    missing = [name for name in _FIELDS.values() if not isinstance(values.get(name), int)]
    if missing:
        raise UserError(f"config.json: {', '.join(missing)} must be given as integers")
    has_bias = bool(values.get("bias", False))
    try:
        return DecoderConfig(
            family="llama",
            **{ours: values[theirs] for ours, theirs in _FIELDS.items()},
            norm_eps=float(values.get("norm_eps", 1e-5)),
            rope=Rope(theta=float(values.get("rope_theta", 10_000.0))),
            has_tied_head=bool(values.get("tie_embeddings", False)),
            has_qkv_bias=has_bias,
            has_out_bias=has_bias,
            has_mlp_bias=has_bias,
        )
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None
