"""YAML in: one mapping a file, strict about repeated keys, with errors of one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jspec.arguments import shown
from jspec.errors import UserError
from jspec.text_files import read_text


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, and reads numbers as YAML 1.2 does.

    `1e-3` is a number, `010` is ten and not eight, and `1:30` is a text and not ninety.
    """

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    _INT: r"[-+]?(0x[0-9a-fA-F_]+|[0-9][0-9_]*)",
    _FLOAT: r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), list("-+0123456789."))


def _whole(loader: yaml.SafeLoader, node: Any) -> int:
    digits = loader.construct_scalar(node).replace("_", "").lower()
    return int(digits, 16 if "0x" in digits else 10)


_Loader.add_constructor(_INT, _whole)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping with text keys."""
    text = read_text(path, "config")
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"config {path}: broken YAML, {_where(error)}") from None
    if data is None:
        raise UserError(f"config {path} is empty; expected keys such as `target: DIR`")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"config {path}: expected keys such as `target: DIR`, given {shown(data)}")
    return data


def parse_yaml(text: str) -> Any:
    """A value given on the command line; what YAML cannot read is a text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
