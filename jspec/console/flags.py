"""Flags that commands share, and the settings that they give.

In reading order: the parser whose mistakes are `UserError`s; the flags for a config; flags made
from the fields of a typed config; the settings of a measurement. Settings are the fields of a typed
config, some with a flag of their own and all under `--set`; what `--set` says of the target goes to
the target's config.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel

import jspec
from jspec.config import (
    InferConfig,
    TargetConfig,
    parse_sets,
    parse_text,
    resolve,
    runnable_names,
)
from jspec.console.configs import DEMO, target_config
from jspec.errors import UserError

Settings = TypeVar("Settings", bound=BaseModel)


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other mistake; `--version` tells jspec's."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        version = f"jspec {jspec.__version__}"
        self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def file_name(text: str) -> str:
    """What a flag takes that names a file or a folder, as argparse's `type`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name was given")
    return text


def add_config_flags(
    parser: argparse.ArgumentParser, *, is_training: bool, example: str, note: str = ""
) -> None:
    """`--config` and `--set`.

    Args:
      is_training: which of the ready configs are named.
      example: a setting, for the help.
      note: the end of both helps.
    """
    names = ", ".join(runnable_names(is_training=is_training))
    parser.add_argument(
        "--config",
        type=file_name,
        metavar="NAME|PATH",
        help=f"YAML file, or one of {names}{note}",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"any field of the config, such as {example}{note}",
    )
    if not is_training:
        weights = InferConfig.model_fields["weights"]
        parser.add_argument(
            "--weights",
            dest="set",
            type="weights={}".format,
            action="append",
            metavar="|".join(get_args(get_args(weights.annotation)[0])),
            help=weights.description,
        )


def add_hosts_flag(parser: argparse.ArgumentParser) -> None:
    """`--hosts`, which `jspec.hosts.join_hosts` takes."""
    parser.add_argument(
        "--hosts",
        metavar="auto|ADDRESS:PORT,COUNT,INDEX",
        help="run on several hosts, the same command on each: auto where the cluster tells "
        "(Cloud TPU, Slurm), else where host 0 is, how many there are and which one this is",
    )


def add_field_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], metavars: Mapping[str, str | None]
) -> None:
    """A flag for each of these fields: its help, its default, and what it takes.

    Args:
      metavars: by field; None where the field's type says what it takes.
    """
    for name, metavar in metavars.items():
        field = model.model_fields[name]
        default = _shown(field.default)
        said = f"{field.description}{f' (default: {default})' if default else ''}"
        options: dict[str, Any] = {"dest": name, "help": said.replace("%", "%%")}
        if field.annotation is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        else:
            options |= {"metavar": metavar or "|".join(get_args(field.annotation))}
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, **options)


def _shown(default: Any) -> str:
    """A default as the flag would be given; empty where there is none."""
    if isinstance(default, BaseModel):
        return ",".join(f"{key}={value}" for key, value in default.model_dump().items())
    if isinstance(default, bool):
        return str(default).lower()
    parts = default if isinstance(default, list) else [default]
    return ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in parts if x is not None)


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
