"""Read and write a `config.json`.

In reading order: `Fields`, the values of a file, each checked as it is read; `read_hf_config`, with
the rotary embedding and the windows; `write_hf_config`. The families are in `families.py`.

The rotary embedding is read in both published styles: `rope_theta` beside `rope_scaling`
(transformers 4), and `rope_parameters` (transformers 5), which is what we write for families that
transformers has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jspec.checkpoints.families import FAMILIES, Family, family_of
from jspec.checkpoints.layouts import Layout
from jspec.checkpoints.other_kinds import quantisation_of
from jspec.errors import UserError
from jspec.models.config import ROPE_NAMES, DecoderConfig, Rope, RopeKind


class Fields:
    """The values of a `config.json`, each checked as it is read.

    Args:
      defaults: what the file may leave out, by the file's names.
      names: the file's name of a value, where it is another; None for no such value.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        names: Mapping[str, str | None] | None = None,
    ):
        self._values, self._defaults, self._names = values, defaults, names or {}

    def get(self, name: str) -> Any:
        """Get the value: None only where the file says null or nobody knows."""
        own = self._names.get(name, name)
        return None if own is None else self._values.get(own, self._defaults.get(own))

    def integer(self, name: str, missing: int | None = None) -> int:
        value = self.get(name)
        value = missing if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(name, "a positive integer", repr(value))
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise self._wrong(name, "a positive number", repr(value))
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false", repr(value))
        return bool(value)

    def must_be(self, name: str, *wanted: Any) -> None:
        """Refuse a value that is not among those that are supported; false may be left out."""
        value = self.get(name)
        if value not in wanted and not (value is None and False in wanted):
            raise self._wrong(name, _json(wanted[0]), _json(value))

    def _wrong(self, name: str, expected: str, given: str) -> UserError:
        own = self._names.get(name, name)
        return UserError(f"config.json: {own} must be {expected}, got {given}")


def _json(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def read_hf_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Read the decoder that a `config.json` describes.

    Raises:
      UserError: another kind of model, an impossible value, or one that is not supported.
    """
    quantised = quantisation_of(values)
    if quantised:
        raise UserError(
            f"config.json: the checkpoint is quantised ({quantised}); give the original, in "
            "float32, float16 or bfloat16"
        )
    name, family = family_of(values)
    fields = Fields(values, family.defaults, family.names)
    for flag in family.refuses:
        if fields.flag(flag):
            raise UserError(f"config.json: {flag} is not supported in {name}, only false")
    for option, wanted in family.needs.items():
        fields.must_be(option, wanted)
    fields.must_be("hidden_act", "silu", "swish")
    try:
        return _decoder(name, family, fields)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None


def _decoder(name: str, family: Family, fields: Fields) -> DecoderConfig:
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers = fields.integer("num_hidden_layers")
    group = fields.integer("block_group_size", missing=1)
    if layers % group:
        raise UserError(f"config.json: block_group_size {group} must divide n_layers {layers}")
    ratio = None if fields.get("mlp_ratio") is None else fields.integer("mlp_ratio")

    def has_bias(part: str) -> bool:
        flag = family.biases.get(part, False)
        return flag if isinstance(flag, bool) else fields.flag(flag)

    return DecoderConfig(
        family=name,
        vocab_size=fields.integer("padded_vocab_size", missing=fields.integer("vocab_size")),
        width=width,
        mlp_width=fields.integer("intermediate_size", missing=ratio and width * ratio),
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=fields.integer("num_key_value_heads", missing=heads),
        head_dim=fields.integer("head_dim", missing=width // heads),
        max_positions=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        rope=_read_rope(family, fields),
        windows=_read_windows(family, fields, layers),
        has_tied_head=fields.flag("tie_word_embeddings"),
        has_qkv_bias=has_bias("qkv"),
        has_out_bias=has_bias("out"),
        has_mlp_bias=has_bias("mlp"),
        has_qk_norm=family.qk_norm,
        is_causal=family.is_causal and fields.get("is_causal") is not False,
    )


def read_layout(values: Mapping[str, Any]) -> Layout:
    """Find how the weights beside a `config.json` are named."""
    _, family = family_of(values)
    return family.layout.in_groups(Fields(values, {}).integer("block_group_size", missing=1))


def _read_rope(family: Family, fields: Fields) -> Rope:
    """Read the rotary embedding; the original length defaults as Hugging Face does it."""
    if family.rope == "plain":
        return Rope(theta=fields.number("rope_theta"))
    longest = fields.integer("max_position_embeddings")
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise UserError(f"config.json: rope_parameters must be an object, got {given!r}")
    if any(isinstance(value, dict) for value in given.values()):
        raise UserError("config.json: a rotary embedding per layer type is not supported")
    given = {"rope_theta": fields.number("rope_theta")} | given
    kind = _rope_kind(given.get("rope_type", given.get("type", "default")))
    partial = given.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UserError(f"config.json: partial_rotary_factor {partial!r} is not supported, only 1")
    if kind in (RopeKind.LLAMA3, RopeKind.YARN, RopeKind.LONGROPE):
        outside = fields.get("original_max_position_embeddings")
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
    """Take every field the file has; check numbers, and make lists hashable."""
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
    """Write the `config.json` of a decoder.

    Raises:
      ValueError: a decoder that is none of its family.
    """
    family = FAMILIES[config.family]
    values = {
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
        **family.needs,
        **family.says,
    }
    if "padded_vocab_size" in family.names:
        values["padded_vocab_size"] = config.vocab_size
    for part, flag in family.biases.items():
        if isinstance(flag, str):
            values[flag] = getattr(config, f"has_{part}_bias")
    if family.is_causal and not config.is_causal:
        values["is_causal"] = False
    values |= _write_windows(config, family)
    if family.rope != "new":
        values = with_old_rope(values)
    if family.rope == "plain":
        del values["rope_scaling"]
    own = ((family.names.get(name, name), value) for name, value in values.items())
    values = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{name: value for name, value in own if name is not None},
    }
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
    """Turn the rotary embedding of a written `config.json` to the style of transformers 4."""
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
