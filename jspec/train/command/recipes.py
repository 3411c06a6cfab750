"""Which command makes a file that a config needs, and which one comes after a training."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jspec.config import Config, find_config, read_yaml, runnable_names
from jspec.errors import UserError
from jspec.train.config import FalconConfig

_MODELS = ("tokenizer", "target", "teacher", "init_from")


def check_made(config: Config, given: str) -> None:
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
    data: Any = getattr(config, "data")  # noqa: B009  # every kind has it
    folder = shlex.quote(data.folder) if "folder" in data.model_fields_set else "DIR"
    commands = dict(_commands(find_config(given)))
    for name, path in missing:
        for out, command in commands.items():
            if Path(path).resolve().is_relative_to(out):
                command = command.replace("data.folder=DIR", f"data.folder={folder}")
                raise UserError(f"{name}: {path} is not there; make it with {command}")


def _needed(config: Config) -> Iterator[tuple[str, str]]:
    """Files and directories that a config names, by the field."""
    for name in _MODELS:
        path = getattr(config, name, None)
        if path is not None:
            yield name, path
    data: Any = getattr(config, "data")  # noqa: B009  # every kind has it
    for corpus in data.corpora:
        if corpus.file is not None:
            is_own = corpus.file.startswith(("./", "/"))
            yield "data.corpora", corpus.file if is_own else str(Path(data.folder) / corpus.file)


def _commands(config: Path) -> Iterator[tuple[Path, str]]:
    """What the ready recipes and those beside a config write, and how each is started.

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


def after_falcon(config: FalconConfig) -> tuple[str, ...]:
    """What to do with a trained head: fit its tree, then decode."""
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
    """How to decode with a trained model, or to draft with it for its teacher."""
    model = Path(config.out) / "model"
    if config.teacher is None and drafter == "draft-model":
        return (f"next: python -m jspec.infer --target {model} --raw --prompt TEXT",)
    target = config.teacher or "TARGET"
    return (f"next: {_decode(target, f'--drafter {drafter} --drafter-path {model}')}",)


def _decode(target: str, drafter: str) -> str:
    """With the config of the target, if there is one, and a prompt, if that has none."""
    name = config_of(target)
    asked = f"--config {name}" if name else f"--target {target}"
    has_prompt = name is not None and "prompt" in read_yaml(find_config(name))
    prompt = "" if has_prompt else " --prompt TEXT"
    return f"python -m jspec.infer {asked} {drafter} --compare{prompt}"


def config_of(target: str) -> str | None:
    """The first ready config that decodes with a target; it has the template and the dtype."""
    for name in runnable_names(is_training=False):
        if read_yaml(find_config(name)).get("target") == target:
            return name
    return None
