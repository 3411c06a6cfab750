"""Flags of a measurement: its own settings, and the config of the target that it measures.

Settings are the fields of a typed config, some with a flag of their own and all under `--set`; what
`--set` says of the target goes to the target's config.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from jspec.config import InferConfig, TargetConfig, parse_sets, parse_text, resolve
from jspec.console.configs import DEMO, target_config

Settings = TypeVar("Settings", bound=BaseModel)


def add_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], metavars: Mapping[str, str]
) -> None:
    """A flag for each of these fields; lists are written with commas."""
    for name, metavar in metavars.items():
        field = model.model_fields[name]
        default = _shown(field.default)
        said = f"{field.description}{f' (default: {default})' if default else ''}"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=said)


def _shown(default: Any) -> str:
    if default is None:
        return ""
    parts = default if isinstance(default, list) else [default]
    return ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in parts)


def settings_of(
    args: argparse.Namespace, model: type[Settings], names: Sequence[str], **more: Any
) -> Settings:
    """The settings that `--set` and the flags of these names give.

    Args:
      more: fields that win over them.
    """
    ours, _ = _sets(args.set, model)
    flags = {name: _flag(model, name, getattr(args, name)) for name in names}
    flags = {name: value for name, value in flags.items() if value is not None}
    return resolve(model, [("--set", _whole(model, ours)), ("command line", flags | more)])


def target_config_of(
    args: argparse.Namespace, model: type[BaseModel], default: str = DEMO
) -> InferConfig:
    """The config of the target, with what `--set` says of it."""
    _, theirs = _sets(args.set, model)
    return target_config(args.config or default, theirs)


def _sets(given: Sequence[str], model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`--set` of our settings, and of the target's; what is in neither is refused as ours."""
    of_the_target = set(TargetConfig.model_fields) - set(model.model_fields)
    theirs = [setting for setting in given if _key(setting) in of_the_target]
    ours = [setting for setting in given if setting not in theirs]
    return parse_sets(ours, model), parse_sets(theirs, InferConfig)


def _key(setting: str) -> str:
    return setting.partition("=")[0].partition(".")[0].strip()


def _flag(model: type[BaseModel], name: str, text: str | None) -> Any:
    if text is None or not _is_list(model, name):
        return None if text is None else parse_text(model, name, text)
    found = [parse_text(model, name, part) for part in text.split(",") if part.strip()]
    return _whole(model, {name: found})[name]


def _is_list(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and get_origin(field.annotation) is list


def _whole(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """One value of a list may be written by itself, and a whole number where any is expected."""
    found = {}
    for name, value in values.items():
        if _is_list(model, name):
            value = value if isinstance(value, list) else [value]
            if get_args(model.model_fields[name].annotation) == (float,):
                value = [float(x) if type(x) is int else x for x in value]
        found[name] = value
    return found
