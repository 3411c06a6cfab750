"""Layers (a file, `--set`, flags, a line of a prompts file) into one checked value.

A layer is `(origin, mapping)`; later layers win, and the origin is named when a value is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import pydantic
from pydantic import BaseModel

from jspec.arguments import hint, plain, shown
from jspec.config.schema import InferConfig, MeshConfig
from jspec.config.yaml_files import parse_yaml
from jspec.errors import UserError

Layer = tuple[str, Mapping[str, Any]]


def parse_sets(settings: Iterable[str], model: type[BaseModel] = InferConfig) -> dict[str, Any]:
    """`key=value` and `key.inner=value` into a nested mapping, typed for `model`."""
    merged: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"--set {setting}: expected key=value, as in --set temperature=0.7")
        value = parse_text(model, parts[0], text)
        for part in reversed(parts[1:]):
            value = {part: value}
        merged = _merge(merged, {parts[0]: value})
    return merged


def parse_text(model: type[BaseModel], name: str, text: str) -> Any:
    """What the command line says for a field; checked later. What YAML cannot read is a text."""
    if _extra(model, name).get("is_text"):
        return text
    return parse_yaml(text)


def parse_mesh(text: str) -> dict[str, Any] | str:
    """`data=1,tensor=2`, each once, into a mapping; other texts are handed back to be refused."""
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if not all(equals and name.strip() for name, equals, _ in pairs) or len({*names}) < len(names):
        return text
    return {name.strip(): parse_text(MeshConfig, name, value) for name, _, value in pairs}


Model = TypeVar("Model", bound=BaseModel)


def resolve(model: type[Model], layers: Iterable[Layer]) -> Model:
    """Merges the layers, the later ones winning, and checks the result.

    Raises:
      UserError: one line naming the origin, the key, what was expected and what was given.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        values = {key: _expanded(key, value) for key, value in values.items()}
        merged = _merge(merged, values)
        origins.update(dict.fromkeys(values, origin))
    try:
        return model.model_validate(merged)
    except pydantic.ValidationError as error:
        raise UserError(_refusal(model, error, origins)) from None


def _expanded(key: str, value: Any) -> Any:
    """The mesh may be written as one text, and one stop text, stop id or prompt without a list."""
    value = plain(value)
    if key == "mesh" and isinstance(value, str):
        return parse_mesh(value)
    if key in ("stop", "prompt") and isinstance(value, str):
        return [value]
    if key in ("stop", "stop_ids") and isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return [value] if key == "stop_ids" and type(value) is int else value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = _merge(dict(merged[key]), value)
        merged[key] = value
    return merged


def _refusal(
    model: type[BaseModel], error: pydantic.ValidationError, origins: Mapping[str, str]
) -> str:
    """What is wrong with each refused key, in one line."""
    problems: dict[str, None] = {}
    for item in error.errors():
        origin = origins.get(str(item["loc"][0]), "") if item["loc"] else ""
        problems[f"{origin}: {_problem(model, item)}" if origin else _problem(model, item)] = None
    shown = list(problems)[:3]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _problem(model: type[BaseModel], item: Any) -> str:
    """One refused key: unknown, or what was expected and what was given."""
    if not item["loc"]:  # a relation between fields
        return f"expected {item['ctx']['error']}"
    model, key, full = _owner(model, [str(part) for part in item["loc"]])
    if item["type"] == "extra_forbidden":
        known = tuple(model.model_fields)
        return f"unknown key {full!r}; {hint(key, known)}"
    expected = _extra(model, key).get("expected", item["msg"])
    return f"{full}: expected {expected}, given {shown(item['input'])}"


def _owner(model: type[BaseModel], path: Sequence[str]) -> tuple[type[BaseModel], str, str]:
    """The config that a refused key belongs to, the key there, and its full name."""
    section: Any = model
    key, full = path[0], []
    for name in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            model, key = section, name
            known = section.model_fields.get(name)
            section = known.annotation if known is not None else None
        elif get_origin(section) is dict and issubclass(get_args(section)[1], BaseModel):
            section = get_args(section)[1]
        else:
            break
        full.append(name)
    return model, key, ".".join(full)


def _extra(model: type[BaseModel], name: str) -> dict[str, Any]:
    known = model.model_fields.get(name)
    extra = known.json_schema_extra if known is not None else None
    return extra if isinstance(extra, dict) else {}
