"""Models of which only the shapes are known: no weight is read or made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.drafters import LoadedDrafter, check_drafter, load_drafter
from jspec.drafters.draft_model import DraftModel
from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.hf import read_config
from jspec.models.known import KNOWN
from jspec.models.model import Model, abstract_params, build
from jspec.models.shipped import shipped
from jspec.models.target import Target
from jspec.models.weights import fit_to_mesh, param_shardings
from jspec.sharding import REPLICATED, TARGET, Table
from jspec.state import Params

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """A model's config and where it was found."""

    name: str
    config: DecoderConfig
    origin: str


def find_shapes(path_or_id: str) -> Found:
    """The config of a checkpoint: a directory, a shipped model, the hub's cache, or a known one.

    The network is never used.

    Raises:
      UserError: nothing of this name is here.
    """
    path = Path(path_or_id).expanduser()
    directory = path if path.is_dir() else shipped(path_or_id) or _cached(path_or_id)
    if directory is not None:
        return Found(path_or_id, read_config(directory), os.fspath(directory / CONFIG_FILE))
    if path_or_id in KNOWN:
        return Found(path_or_id, KNOWN[path_or_id], "the table of known checkpoints")
    raise UserError(
        f"{path_or_id}: no directory here, not in the hub's cache, and not a known checkpoint; "
        f"give a directory that holds {CONFIG_FILE}, or one of {', '.join(KNOWN)}"
    )


def _cached(repo_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, CONFIG_FILE)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def sharded_shapes(model: Model, dtype: str, mesh: Mesh, table: Table = TARGET) -> Params:
    """The parameters of a model as shapes, each with its place on the mesh."""

    def place(leaf, where) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    shapes = abstract_params(model, jnp.dtype(dtype))
    return jax.tree.map(place, shapes, param_shardings(model, mesh, table))


def target_shapes(
    config: DecoderConfig, *, dtype: str, mesh: Mesh, table: Table = TARGET
) -> Target:
    """A target whose weights are shapes."""
    model = build(fit_to_mesh(config, mesh, table))
    return Target(
        model=model,
        params=sharded_shapes(model, dtype, mesh, table),
        dtype=dtype,
        mesh=mesh,
        path=None,
        stop_ids=(),
        max_length=config.max_length,
    )


def drafter_shapes(
    name: str, path: str | None, options: Mapping[str, Any], *, target: Target
) -> tuple[LoadedDrafter, Found | None]:
    """A drafter whose weights are shapes, and where these came from.

    Raises:
      UserError: an unknown drafter, an option or a path it cannot use, or weights of a method of
        which only the loading with numbers is known.
    """
    check_drafter(name, options)
    if name != "draft-model":
        if path is not None:
            raise UserError(
                f"drafter {name} at {path}: its shapes are not known without its weights; "
                "compile with draft-model, or with a drafter that has none"
            )
        return load_drafter(name, target=target, **options), None
    if path is None:
        raise UserError("draft-model needs the small model: give drafter_path")
    found = find_shapes(path)
    small = target_shapes(found.config, dtype=target.dtype, mesh=target.mesh, table=REPLICATED)
    try:
        drafter = DraftModel(model=small.model, vocab_size=target.vocab_size, **options)
    except ValueError as error:
        raise UserError(f"draft-model: {error}") from None
    return LoadedDrafter(name=name, drafter=drafter, params=small.params), found
