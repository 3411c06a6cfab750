"""The `config.json` of LLaDA, which has names of its own for the fields of a plain decoder.

Its weights are named in `layouts.LLADA`. Only what the released models use is supported: rotary
positions, RMS norms, gated MLPs, no biases but those of queries, keys and values.

Source: Nie et al. 2025 (LLaDA, arXiv 2502.09992), the released configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jspec.checkpoints.hf_fields import Fields
from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope, RopeKind

FAMILY = "llada"
ARCHITECTURE = "LLaDAModelLM"

_DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_layers": 12,
    "mlp_ratio": 4,
    "max_sequence_length": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "vocab_size": 50257,
    "weight_tying": True,
    "include_bias": True,
    "rope": False,
    "layer_norm_type": "default",
    "activation_type": "swiglu",
    "block_type": "sequential",
}
"""What the file may leave out, as in the published class; what is False or null there is absent."""

_NEEDS: dict[str, Any] = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "multi_query_attention": False,
}
"""Options of which one value is supported, by their names."""


def is_llada(values: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of these."""
    name = values.get("model_type")
    return name == FAMILY or (name is None and ARCHITECTURE in (values.get("architectures") or []))


def group_size(values: Mapping[str, Any]) -> int:
    """How many blocks stand together in a group; 1 where there are no groups."""
    return Fields(values, {"block_group_size": 1}).integer("block_group_size")


def read_llada(values: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that such a `config.json` describes.

    Raises:
      UserError: a missing or impossible value, or an option that is not supported.
    """
    fields = Fields(values, _DEFAULTS)
    for name, wanted in _NEEDS.items():
        given = fields.get(name)
        if given != wanted and not (given is None and wanted is False):
            raise UserError(f"config.json: {name} must be {_json(wanted)}, got {_json(given)}")
    width, heads = fields.integer("d_model"), fields.integer("n_heads")
    layers = fields.integer("n_layers")
    if layers % group_size(values):
        raise UserError(
            f"config.json: block_group_size {group_size(values)} must divide n_layers {layers}"
        )
    hidden = width * fields.integer("mlp_ratio") if fields.get("mlp_hidden_size") is None else None
    try:
        return DecoderConfig(
            family=FAMILY,
            vocab_size=fields.integer("embedding_size", missing=fields.integer("vocab_size")),
            width=width,
            mlp_width=fields.integer("mlp_hidden_size", missing=hidden),
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=fields.integer("n_kv_heads", missing=heads),
            head_dim=width // heads,
            max_positions=fields.integer("max_sequence_length"),
            norm_eps=fields.number("rms_norm_eps"),
            rope=Rope(theta=fields.number("rope_theta")),
            has_tied_head=fields.flag("weight_tying"),
            has_qkv_bias=fields.flag("include_qkv_bias"),
            is_causal=False,
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None


def _json(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, repr(value))


def write_llada(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder of this family."""
    values = {
        "architectures": [ARCHITECTURE],
        "model_type": FAMILY,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "d_model": config.width,
        "mlp_hidden_size": config.mlp_width,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "max_sequence_length": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_full_precision": True,
        "weight_tying": config.has_tied_head,
        "include_qkv_bias": config.has_qkv_bias,
        "block_group_size": 1,
        "use_cache": False,
        **_NEEDS,
    }
    if config.rope.kind is not RopeKind.DEFAULT or read_llada(values) != config:
        raise ValueError(f"a {FAMILY} checkpoint cannot express {config}")
    return values
