"""Find, call and check load functions of users' own drafters, `package.module:attribute`.

In reading order: `find`, which imports the load function, and `load_own`, which calls it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jspec.drafters.base import LoadedDrafter
from jspec.drafters.contract import Broken, check_contract, shown, told
from jspec.errors import UserError


def is_own(name: str) -> bool:
    """Tell whether a drafter's name is that of a user's own load function."""
    return ":" in name


def find(name: str) -> Callable[..., Any]:
    """Import the load function that `package.module:attribute` names.

    Modules of the working directory are found, as with `python -m`.

    Raises:
      UserError: no such module or attribute, a module that cannot be imported, or a function that
        does not take a path and `target=`.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f"drafter {name!r}: expected package.module:load, as in my_drafter:load")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"drafter {name}: there is no module {missing!r} in {os.getcwd()} or among the "
                "installed packages; run where it is, or put its folder on PYTHONPATH"
            ) from None
        raise UserError(
            f"drafter {name}: {module_name} cannot be imported: {told(error)}"
        ) from error
    load = getattr(module, attribute, None)
    if load is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise UserError(f"drafter {name}: {module_name} has no {attribute!r}{hint}")
    if not callable(load) or not _takes_path_and_target(load):
        raise UserError(
            f"drafter {name}: expected a function load(path, *, target, **options) that returns a "
            f"LoadedDrafter, found {shown(load)}"
        )
    return load


def _takes_path_and_target(load: Callable) -> bool:
    try:
        inspect.signature(load).bind_partial(None, target=None)
    except (TypeError, ValueError):
        return False
    return True


def load_own(
    name: str, load: Callable[..., Any], path, target, options: Mapping[str, Any]
) -> LoadedDrafter:
    """Call the load function and check what it returns.

    Raises:
      UserError: it failed, or what it gave is no drafter or breaks the contract.
    """
    try:
        loaded = load(path, target=target, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"drafter {name}: its load function failed: {told(error)}") from error
    if not isinstance(loaded, LoadedDrafter):
        raise UserError(
            f"drafter {name}: its load function must return a jspec.drafters.LoadedDrafter, "
            f"it returned {shown(loaded)}"
        )
    try:
        check_contract(loaded, target)
    except Broken as broken:
        raise UserError(
            f"drafter {name} breaks the contract (docs/drafter.md): {broken}"
        ) from broken.__cause__
    return loaded
