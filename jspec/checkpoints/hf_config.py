"""Reading and writing the `config.json` of the families we know.

A value that a file leaves out has the default of its family's Hugging Face class, which is not the
same in every family. The rotary embedding is read in both published styles: `rope_theta` beside
`rope_scaling` (transformers 4), and `rope_parameters` (transformers 5), which is what we write for
families that transformers has. LLaDA has names of its own: `llada.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jspec.checkpoints import llada
from jspec.checkpoints.hf_fields import Fields
from jspec.checkpoints.other_kinds import kind_of_config, quantisation_of
from jspec.errors import UserError
from jspec.models.config import ROPE_NAMES, DecoderConfig, Rope, RopeKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A published architecture that the decoder covers.

    Attributes:
      architecture: class name written to `config.json`.
      defaults: what the file may leave out.
      reads_biases: the file's `attention_bias` (and `mlp_bias`) decide; otherwise `qkv_bias` does.
      qkv_bias: queries, keys and values add a bias.
      qk_norm: queries and keys are normalised per head.
      windows: which layers slide: "none", "all", or "some" (by layer types or the first windowed).
      is_causal: False where every row sees the whole text, whatever the file says.
      refuses: flags that must be false; written as such.
      has_old_rope: the class reads the rotary embedding in the style of transformers 4.
    """

    architecture: str
    defaults: dict[str, Any]
    reads_biases: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: str = "none"
    is_causal: bool = True
    refuses: tuple[str, ...] = ()
    has_old_rope: bool = False


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

FAMILIES = {
    "llama": Family(architecture="LlamaForCausalLM", defaults=_DEFAULTS, reads_biases=True),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults=_DEFAULTS
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        windows="all",
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM", defaults=_QWEN_DEFAULTS, qkv_bias=True, windows="some"
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
        reads_biases=True,
        qk_norm=True,
        windows="some",
    ),
    "Dream": Family(
        architecture="DreamModel",
        defaults=_QWEN_DEFAULTS,
        qkv_bias=True,
        is_causal=False,
        refuses=("use_mrope", "use_sliding_window"),
        has_old_rope=True,
    ),
}
"""By `model_type`. Vicuna is a llama, Qwen2.5 a qwen2."""


def read_hf_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a `config.json` describes."""
    quantised = quantisation_of(values)
    if quantised:
        raise UserError(
            f"config.json: the checkpoint is quantised ({quantised}); give the original, in "
            "float32, float16 or bfloat16"
        )
    if llada.is_llada(values):
        return llada.read_llada(values)
    name, family = _family(values)
    fields = Fields(values, family.defaults)
    for flag in family.refuses:
        if fields.flag(flag):
            raise UserError(f"config.json: {flag} is not supported in {name}, only false")
    if fields.get("hidden_act") not in ("silu", "swish"):
        raise UserError(f"config.json: hidden_act must be 'silu', got {fields.get('hidden_act')!r}")
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers = fields.integer("num_hidden_layers")
    attention_bias = family.reads_biases and fields.flag("attention_bias")
    rope = _read_rope(values, fields)
    try:
        return DecoderConfig(
            family=name,
            vocab_size=fields.integer("vocab_size"),
            width=width,
            mlp_width=fields.integer("intermediate_size"),
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=fields.integer("num_key_value_heads", missing=heads),
            head_dim=fields.integer("head_dim", missing=width // heads),
            max_positions=fields.integer("max_position_embeddings"),
            norm_eps=fields.number("rms_norm_eps"),
            rope=rope,
            windows=_read_windows(family, fields, layers),
            has_tied_head=fields.flag("tie_word_embeddings"),
            has_qkv_bias=family.qkv_bias or attention_bias,
            has_out_bias=attention_bias,
            has_mlp_bias=name == "llama" and fields.flag("mlp_bias"),
            has_qk_norm=family.qk_norm,
            is_causal=family.is_causal and values.get("is_causal", True) is not False,
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None


def _family(values: Mapping[str, Any]) -> tuple[str, Family]:
    name = values.get("model_type")
    architectures = values.get("architectures") or []
    if name is None:
        by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
        name = next((by_architecture[a] for a in architectures if a in by_architecture), None)
    if not isinstance(name, str) or name not in FAMILIES:
        given, kind = name or ", ".join(map(str, architectures)) or "none", kind_of_config(values)
        raise UserError(
            f"config.json: model type {given!r} is not supported{f' ({kind})' if kind else ''}; "
            f"known: {', '.join([*FAMILIES, llada.FAMILY])}"
        )
    return name, FAMILIES[name]


def _read_rope(values: Mapping[str, Any], fields: Fields) -> Rope:
    """The rotary embedding; the original length defaults as Hugging Face does it."""
    longest = fields.integer("max_position_embeddings")
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise UserError(f"config.json: rope_parameters must be an object, got {given!r}")
    if any(isinstance(value, dict) for value in given.values()):
        raise UserError("config.json: a rotary embedding per layer type is not supported")
    given = {"rope_theta": fields.number("rope_theta")} | given
    kind = _rope_kind(given.get("rope_type", given.get("type", "default")))
    partial = given.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UserError(f"config.json: partial_rotary_factor {partial!r} is not supported, only 1")
    if kind in (RopeKind.LLAMA3, RopeKind.YARN, RopeKind.LONGROPE):
        outside = values.get("original_max_position_embeddings")
        inside = given.get("original_max_position_embeddings")
        given["original_max_position_embeddings"] = outside or inside or longest
        if given.get("factor") is None and kind is not RopeKind.LLAMA3:
            given["factor"] = longest / given["original_max_position_embeddings"]
    return _rope_of(kind, given)


def _rope_kind(name: Any) -> RopeKind:
    if name == "dynamic":
        raise UserError(
            "config.json: rope type 'dynamic' is refused: it changes the keys of earlier tokens as "
            "the text grows; set another scaling, or remove it to serve the original length"
        )
    kinds = {kind.value: kind for kind in RopeKind}
    if name not in kinds:
        raise UserError(
            f"config.json: rope type {name!r} is not supported; known: {', '.join(kinds)}"
        )
    return kinds[name]


def _rope_of(kind: RopeKind, given: dict[str, Any]) -> Rope:
    """Every field the file has; numbers checked, lists made hashable."""
    fields = {}
    for field in dataclasses.fields(Rope):
        name = ROPE_NAMES.get(field.name, field.name)
        value = given.get(name)
        if field.name == "kind" or value is None:
            continue
        numbers = value if isinstance(value, list | tuple) else [value]
        is_list = field.name in ("short_factors", "long_factors")
        if is_list != isinstance(value, list | tuple) or not all(
            isinstance(number, int | float) for number in numbers
        ):
            raise UserError(f"config.json: rope {name} cannot be {value!r}")
        fields[field.name] = tuple(map(float, numbers)) if is_list else value
    try:
        return Rope(kind=kind, **fields)
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None


def _read_windows(family: Family, fields: Fields, layers: int) -> tuple[int | None, ...]:
    if family.windows == "none":
        return (None,) * layers
    if family.windows == "all":
        is_full = fields.get("sliding_window") is None
        return (None if is_full else fields.integer("sliding_window"),) * layers
    kinds = fields.get("layer_types")
    is_sliding = fields.flag("use_sliding_window") and fields.get("sliding_window") is not None
    window = fields.integer("sliding_window") if is_sliding else None
    if kinds is None:
        first = fields.get("max_window_layers") or 0
        return tuple(window if i >= first else None for i in range(layers))
    known: dict[str, int | None] = {"full_attention": None}
    if window is not None:
        known["sliding_attention"] = window
    is_known = isinstance(kinds, list) and all(kind in list(known) for kind in kinds)
    if not is_known or len(kinds) < layers:
        raise UserError(
            f"config.json: layer_types must name {layers} layers, each one of "
            f"{', '.join(known)} (sliding needs use_sliding_window), got {kinds!r}"
        )
    return tuple(known[kind] for kind in kinds[:layers])


def write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder."""
    if config.family == llada.FAMILY:
        return llada.write_llada(config)
    family = FAMILIES[config.family]
    values = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.has_tied_head,
        "rope_parameters": _write_rope(config.rope),
        "use_cache": family.is_causal,
        **dict.fromkeys(family.refuses, False),
    }
    if family.reads_biases:
        values["attention_bias"] = config.has_qkv_bias
    if config.family == "llama":
        values["mlp_bias"] = config.has_mlp_bias
    if family.is_causal and not config.is_causal:
        values["is_causal"] = False
    values |= _write_windows(config, family)
    if family.has_old_rope:
        values = with_old_rope(values)
    if read_hf_config(values) != config:
        raise ValueError(f"a {config.family} checkpoint cannot express {config}")
    return values


def _write_rope(rope: Rope) -> dict[str, Any]:
    values: Mapping[str, Any] = {"rope_type": rope.kind.value}
    for field in dataclasses.fields(Rope):
        value = getattr(rope, field.name)
        if field.name != "kind" and value is not None:
            name = ROPE_NAMES.get(field.name, field.name)
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def with_old_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """A written `config.json` with its rotary embedding in the style of transformers 4."""
    values = dict(values)
    rope = dict(values.pop("rope_parameters"))
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == RopeKind.DEFAULT.value else {"type": kind, **rope}
    return values | {"rope_theta": theta, "rope_scaling": scaling}


def _write_windows(config: DecoderConfig, family: Family) -> dict[str, Any]:
    used = [window for window in config.windows if window is not None]
    window = used[0] if used else None
    if family.windows == "all":
        return {"sliding_window": window}
    if family.windows == "some":
        kinds = ["full_attention" if w is None else "sliding_attention" for w in config.windows]
        return {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": kinds,
        }
    return {}
