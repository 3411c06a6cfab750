"""The config that a command runs with: a YAML file, then `--set`, then flags.

In reading order: `infer_config`, for commands that take every field; `target_config`, for those
that have settings of their own and take only the target and its drafters from the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jspec.config import (
    InferConfig,
    Layer,
    config_names,
    find_config,
    parse_sets,
    parse_text,
    read_yaml,
    resolve,
    runnable_names,
)
from jspec.errors import UserError

DEMO = "demo"
"""The config that runs where nothing else is asked for."""

_OF_THE_DRAFTER = ("drafter_path", "drafter_options")
_OF_THE_TARGET = ("target_digest",)


def infer_config(
    name: str | None, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> InferConfig:
    """Resolve the config file, then `--set`, then flags.

    Options and weights in the file belong to the drafter it names; where another one is asked for,
    they are left out.

    Args:
      name: of a ready config or a file; the demo where None and no target is given.
      flags: by field, as the command line says them; None where a flag is not given.

    Raises:
      UserError: an unknown config or key, a value out of range, or settings that contradict each
        other.
    """
    given = {k: _parsed(k, value) for k, value in (flags or {}).items() if value is not None}
    layers: list[Layer] = [("--set", parse_sets(sets)), ("command line", given)]
    has_target = any("target" in values for _, values in layers)
    if name is None and not has_target:
        if DEMO not in config_names():
            known = ", ".join(runnable_names(is_training=False))
            raise UserError(
                f"nothing to run: give --target with a checkpoint directory, or --config ({known})"
            )
        name = DEMO
    if name is not None:
        layers = _with_its_drafter(_file_layer(name, has_target), layers)
    config = resolve(InferConfig, layers)
    if config.target is None:
        raise UserError(f"{name}: no target; add `target: DIR`, or give --target")
    if config.drafter_path and config.drafter == InferConfig.model_fields["drafter"].default:
        raise UserError(
            f"drafter_path {config.drafter_path} is given, but no drafter that could use it; add "
            "--drafter NAME"
        )
    if given.get("system") and config.raw:
        raise UserError("--system is part of the chat template, which --raw leaves out; drop one")
    return config


def target_config(name: str, values: Mapping[str, Any]) -> InferConfig:
    """Resolve the config of a target and its drafters.

    Args:
      values: what `--set` says of it.

    Raises:
      UserError: no such config, one for training, or one without a target.
    """
    config = resolve(InferConfig, [_file_layer(name, "target" in values), ("--set", values)])
    if config.target is None:
        raise UserError(f"{name}: no target; add `target: DIR`, or give --set target=DIR")
    return config


def _file_layer(name: str, has_target: bool) -> Layer:
    """The values of a config file; the digest belongs to the target that the file names."""
    path = find_config(name)
    values = read_yaml(path)
    if "kind" in values:
        raise UserError(
            f"{path} is a recipe for training; run python -m jspec.train --config {name}"
        )
    if has_target:
        values = {k: v for k, v in values.items() if k not in _OF_THE_TARGET}
    return str(path), values


def _with_its_drafter(file: Layer, layers: Sequence[Layer]) -> list[Layer]:
    """The file below the other layers, its drafter the one that was asked for.

    A name of the file's `drafters` stands for what is written there.
    """
    origin, values = file
    asked = [layer["drafter"] for _, layer in layers if "drafter" in layer]
    name = asked[-1] if asked else values.get("drafter")
    if name != values.get("drafter"):
        values = {k: v for k, v in values.items() if k not in _OF_THE_DRAFTER}
    drafters = values.get("drafters")
    entry = drafters.get(name) if isinstance(drafters, dict) else None
    if isinstance(entry, dict):
        values = {k: v for k, v in values.items() if k != "drafter"}
        values = entry | values
        layers = [(o, {k: v for k, v in layer.items() if k != "drafter"}) for o, layer in layers]
    return [(origin, values), *layers]


def _parsed(name: str, given: Any) -> Any:
    if name == "stop_ids":
        return [parse_text(InferConfig, name, text) for text in given]
    return parse_text(InferConfig, name, given) if isinstance(given, str) else given
