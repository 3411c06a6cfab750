"""Load drafters by name; joining takes one file and one line of `_MODULES`."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import inspect
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jspec.arguments import plain, shown
from jspec.drafters.base import Drafter, DraftSize, LoadedDrafter, Method, chain_draft, chain_size
from jspec.drafters.own import find, is_own, load_own
from jspec.errors import UserError
from jspec.lazy import submodules

__all__ = [
    "NAMES",
    "DraftSize",
    "Drafter",
    "LoadedDrafter",
    "chain_draft",
    "chain_size",
    "check_drafter",
    "is_own",
    "load_drafter",
]

_MODULES = {
    "none": "jspec.drafters.none",
    "draft-model": "jspec.drafters.draft_model",
    "prompt-lookup": "jspec.drafters.prompt_lookup",
    "falcon": "jspec.drafters.falcon.loading",
    "diffuspec": "jspec.drafters.diffuspec.loading",
    "easyspec": "jspec.drafters.easyspec.loading",
}
"""Each has a `METHOD`."""

NAMES = tuple(_MODULES)

_GIVEN = ("path", "target")
"""What the load function of a drafter of one's own takes beside its options."""

_RENAMED = {"spread": "score_temperature"}
"""Options by the names they had in the release before, which still work."""

_logger = logging.getLogger(__name__)

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)


def load_drafter(name: str, /, path=None, *, target, **options) -> LoadedDrafter:
    """Load a drafter for this target.

    Args:
      name: one of `NAMES`, or `package.module:load` for one of your own.
      path: local directory, GGUF file or hub id, for drafters that have weights.
      target: the loaded target it drafts for; for an abstract one the drafter's arrays are shapes
        too, and the network is not used.
      options: the drafter's own; the `options` of its `METHOD` document them.

    Raises:
      UserError: an unknown name or option, or a drafter that does not fit the target.
    """
    for what, given in (("name", name), ("target", target)):
        if isinstance(given, str | os.PathLike) is (what == "target"):
            expected = "a drafter's name" if what == "name" else "what jspec.load_target returns"
            raise UserError(f"load_drafter: {what} must be {expected}, given {shown(given)}")
    options = {key: plain(value) for key, value in options.items()}
    check_drafter(name, options)
    if is_own(name):
        loaded = load_own(name, find(name), path, target, options)
    else:
        for old in options.keys() & _RENAMED.keys():
            if not target.is_abstract:  # else it is loaded again, and told then
                _logger.warning("drafter %s: option %s is now called %s", name, old, _RENAMED[old])
        loaded = _load(name, path, target, _with_new_names(name, options))
    return dataclasses.replace(loaded, loaded_for=getattr(target, "model", None))


def _load(name: str, path, target, options: Mapping[str, Any]) -> LoadedDrafter:
    method = _method(name)
    if path is None and method.needs:
        raise UserError(f"{name} needs {method.needs}")
    if path is not None and not method.needs:
        raise UserError(f"drafter {name} has no weights to read at {path}: leave out its path")
    try:
        checked = method.options(**options)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    drafter, params = method.load(path, target, checked)
    return LoadedDrafter(name=name, drafter=drafter, params=params)


def check_drafter(name: str, options: Mapping[str, Any]) -> None:
    """Check what can be checked before a target is loaded.

    Raises:
      UserError: no drafter of this name, or an option that it does not have, or that is not of its
        default's type.
    """
    if name not in _MODULES and not is_own(name):
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"unknown drafter {name!r}: {hint}known are {', '.join(NAMES)}; one of your own is "
            "package.module:load"
        )
    parameters = inspect.signature(find(name) if is_own(name) else _method(name).options).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {
        key: p.default
        for key, p in parameters.items()
        if key not in _GIVEN and p.kind is not p.VAR_KEYWORD
    }
    for key, value in _with_new_names(name, options).items():
        if takes_any and key not in (*known, *_GIVEN):
            continue
        if key not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"drafter {name} has no option {key!r}; it has {listed}")
        expected = str if isinstance(known[key], enum.Enum) else type(known[key])
        is_free = known[key] in (None, inspect.Parameter.empty)
        is_number = expected is float and isinstance(value, int) and not isinstance(value, bool)
        if not is_free and not is_number and type(value) is not expected:
            raise UserError(
                f"option {key} of drafter {name} must be {expected.__name__}, not {value!r}"
            )
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in options:
            raise UserError(f"drafter {name} needs option {key}: give drafter_options.{key}")


def _with_new_names(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Rename options that have the name of an earlier release."""
    if is_own(name):
        return dict(options)
    return {_RENAMED.get(key, key): value for key, value in options.items()}


def _method(name: str) -> Method:
    return importlib.import_module(_MODULES[name]).METHOD
