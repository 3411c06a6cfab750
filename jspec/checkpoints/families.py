"""The published architectures that the decoder covers: what their `config.json` says, and how.

In reading order: `Family`; the families of Hugging Face, Dream and LLaDA among them; llama2c.py's
own kind of file; `family_of`, which tells them apart.

Fields are called as in Hugging Face's llama. A family whose files have other names lists them, so
that all are read and written by one function (`hf_config.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jspec.checkpoints.layouts import HUGGING_FACE, LLADA, LLAMA2C, Layout
from jspec.checkpoints.other_kinds import kind_of_config
from jspec.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A published architecture.

    Attributes:
      architecture: class name written to `config.json`.
      defaults: what the file may leave out, by the file's names: the defaults of the published
        class, which are not the same in every family.
      names: the file's name of a field, where it is not that of a llama; None for no such field.
      needs: options of which one value is supported, by the file's names; written as such.
      refuses: flags that must be false; written as such.
      says: what is written besides.
      biases: of "qkv", "out" and "mlp", the flag that decides, or True where there always is one.
      qk_norm: queries and keys are normalised per head.
      windows: which layers slide: "none", "all", or "some" (by layer types or the first windowed).
      is_causal: False where every row sees the whole text, whatever the file says.
      is_shifted: of a diffusion model, whether row r predicts position r + 1.
      rope: how the rotary embedding is written: "new" is `rope_parameters` (transformers 5), "old"
        `rope_theta` beside `rope_scaling` (transformers 4), "plain" `rope_theta` without scaling.
      layout: names of the weights.
    """

    architecture: str
    defaults: Mapping[str, Any]
    names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    says: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    biases: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    qk_norm: bool = False
    windows: str = "none"
    is_causal: bool = True
    is_shifted: bool | None = None
    rope: str = "new"
    layout: Layout = HUGGING_FACE


_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_QWEN_DEFAULTS = _DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_MISTRAL_DEFAULTS = _DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_ATTENTION_BIAS: dict[str, str | bool] = {"qkv": "attention_bias", "out": "attention_bias"}

_LLADA = Family(
    architecture="LLaDAModelLM",
    defaults={
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
    },
    names={
        "padded_vocab_size": "embedding_size",
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": None,
        "hidden_act": "activation_type",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    },
    needs={
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "multi_query_attention": False,
    },
    says={"rope_full_precision": True, "block_group_size": 1},
    biases={"qkv": "include_qkv_bias"},
    is_causal=False,
    is_shifted=False,
    rope="plain",
    layout=LLADA,
)
"""Only what the released models use is supported: rotary positions, RMS norms, gated MLPs, no
biases but those of queries, keys and values.

Source: Nie et al. 2025 (LLaDA, arXiv 2502.09992), the released configurations and class.
"""

FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults=_DEFAULTS,
        biases=_ATTENTION_BIAS | {"mlp": "mlp_bias"},
    ),
    "mistral": Family(architecture="MistralForCausalLM", defaults=_MISTRAL_DEFAULTS, windows="all"),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN_DEFAULTS,
        biases={"qkv": True},
        windows="some",
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
        biases=_ATTENTION_BIAS,
        qk_norm=True,
        windows="some",
    ),
    "Dream": Family(
        architecture="DreamModel",
        defaults=_QWEN_DEFAULTS,
        refuses=("use_mrope", "use_sliding_window"),
        biases={"qkv": True},
        is_causal=False,
        is_shifted=True,
        rope="old",
    ),
    "llada": _LLADA,
}
"""By `model_type`. Vicuna is a llama, Qwen2.5 a qwen2."""

_LLAMA2C = Family(
    architecture="LlamaForCausalLM",
    defaults={"hidden_act": "silu", "norm_eps": 1e-5, "rope_theta": 10_000.0},
    names={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    needs={"arch": "llama"},
    refuses=("sub_norm",),
    biases={"qkv": "bias", "out": "bias", "mlp": "bias"},
    rope="plain",
    layout=LLAMA2C,
)
"""A plain llama under the names of llama2.c: `"arch": "llama"` and no `model_type`."""


def family_of(values: Mapping[str, Any]) -> tuple[str, Family]:
    """Find the family of a `config.json`: its name in `FAMILIES`, and how the file is read.

    Raises:
      UserError: a family that is not covered.
    """
    name = values.get("model_type")
    if "arch" in values and "model_type" not in values:
        return "llama", _LLAMA2C
    architectures = values.get("architectures") or []
    if name is None:
        by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
        name = next((by_architecture[a] for a in architectures if a in by_architecture), None)
    if not isinstance(name, str) or name not in FAMILIES:
        given, kind = name or ", ".join(map(str, architectures)) or "none", kind_of_config(values)
        raise UserError(
            f"config.json: model type {given!r} is not supported{f' ({kind})' if kind else ''}; "
            f"known: {', '.join(FAMILIES)}"
        )
    return name, FAMILIES[name]
