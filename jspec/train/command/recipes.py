"""Tells what a config needs, what it has made, and which command comes before or after it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jspec.config import find_config, read_yaml, runnable_names
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.train.config import FalconConfig, RunConfig

_MODELS = ("tokenizer", "target", "teacher", "init_from")


def check_made(config: RunConfig, given: str) -> None:
    """Refuse a config that needs what another recipe would have made, and name that one.

    What no recipe makes is left to those who read it.

    Args:
      given: the config's name or path; recipes beside it are looked at too.

    Raises:
      UserError: what is missing, and the command that makes it.
    """
    missing = [(name, path) for name, path in _needed(config) if not Path(path).exists()]
    if not missing:
        return
    is_given = "folder" in config.data.model_fields_set
    folder = shlex.quote(config.data.folder) if is_given else "DIR"
    commands = dict(_commands(find_config(given)))
    for name, path in missing:
        for out, command in commands.items():
            if Path(path).resolve().is_relative_to(out):
                command = command.replace("data.folder=DIR", f"data.folder={folder}")
                raise UserError(f"{name}: {path} is not there; make it with {command}")


def _needed(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Find the files and directories that a config names, by the field."""
    for name in _MODELS:
        path = getattr(config, name, None)
        if path is not None:
            yield name, path
    for corpus in config.data.corpora:
        path = corpus.path_in(config.data.folder)
        if path is not None:
            yield "data.corpora", path


def _commands(config: Path) -> Iterator[tuple[Path, str]]:
    """Find what the ready recipes and those beside a config write, and how each is started.

    A recipe's first lines may tell a variant of another one: `--config demo/texts --set out=...`.
    """
    named = {find_config(name).resolve(): name for name in runnable_names(is_training=True)}
    beside = {path.resolve(): str(path) for path in config.parent.glob("*.y*ml")}
    # Those beside win where both write the same; one that is both goes by its name.
    for path, name in (named | beside | named).items():
        try:
            values: Mapping[str, Any] = read_yaml(path)
            text = path.read_text(encoding="utf-8")
        except (UserError, OSError, ValueError):
            continue
        for line in re.findall(r"^# +(python -m jspec\.train .*\bout=.*)$", text, re.MULTILINE):
            yield Path(re.search(r"\bout=(\S+)", line)[1]).resolve(), line  # type: ignore[index]
        if isinstance(values.get("out"), str) and "kind" in values:
            has_folder = "folder" in (values.get("data") or {})
            more = "" if has_folder else " --set data.folder=DIR"
            yield Path(values["out"]).resolve(), f"python -m jspec.train --config {name}{more}"


def is_made(made: Path, what: str, directory: Path, *, log: Log, resume: bool) -> bool:
    """Tell whether an earlier run has made something, which is not made again.

    Args:
      made: the file that is there when all is.
      what: "a tokenizer".

    Raises:
      UserError: it is there and `resume` is not set.
    """
    if made.exists() and not resume:
        raise UserError(f"{directory} has {what}; remove it, or give another out")
    if made.exists():
        log.note(f"{made.parent} is complete")
    return made.exists()


def after_falcon(config: FalconConfig) -> tuple[str, ...]:
    """Tell what to do with a trained head: fit its tree, then decode."""
    head = Path(config.out) / "model"
    name = config_of(config.target)
    drafter = f"--drafter falcon --drafter-path {head}"
    target = f"--config {name}" if name else f"--set target={config.target}"
    return (
        "next, fit its tree to what it has learnt and to this machine (the default tree is for "
        "heads that were trained for long, and slow with others):",
        f"  python -m jspec.plan {target} {drafter} --out {head / 'tree.yaml'}",
        "then decode with it:",
        f"  {_decode(config.target, drafter)}",
    )


def after_model(config: Any, drafter: str) -> tuple[str, ...]:
    """Tell how to decode with a trained model, or to draft with it for its teacher."""
    model = Path(config.out) / "model"
    if config.teacher is None and drafter == "draft-model":
        return (f"next: python -m jspec.infer --target {model} --raw --prompt TEXT",)
    target = config.teacher or "TARGET"
    return (f"next: {_decode(target, f'--drafter {drafter} --drafter-path {model}')}",)


def _decode(target: str, drafter: str) -> str:
    """Decode with the config of the target, if there is one, and a prompt, if that has none."""
    name = config_of(target)
    asked = f"--config {name}" if name else f"--target {target}"
    has_prompt = name is not None and "prompt" in read_yaml(find_config(name))
    prompt = "" if has_prompt else " --prompt TEXT"
    return f"python -m jspec.infer {asked} {drafter} --compare{prompt}"


def config_of(target: str) -> str | None:
    """Find the first ready config that decodes with a target; it has the template and the dtype."""
    for name in runnable_names(is_training=False):
        if read_yaml(find_config(name)).get("target") == target:
            return name
    return None
