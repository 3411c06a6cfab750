"""A target: a model with its weights on their devices, and what its checkpoint says of texts."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.config import shown
from jspec.errors import UserError
from jspec.models import hf
from jspec.models.config import DecoderConfig
from jspec.models.found import find_shapes
from jspec.models.hub import find_directory, local_directory
from jspec.models.model import Model, abstract_params, build
from jspec.models.tensor_files import read_json
from jspec.models.weights import fit_to_mesh, sharded_shapes
from jspec.sharding import REPLICATED, TARGET, Table, make_mesh
from jspec.state import Params

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation_config.json"

DTYPES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A loaded model.

    Attributes:
      model: static; its key/value heads may be repeated to fit the mesh.
      params: the weights; of an abstract target, their shapes and places.
      dtype: their type, by name.
      mesh: where they are.
      path: the checkpoint directory; None for a model made in memory.
      stop_ids: tokens that end a text, from the checkpoint.
      max_length: longest text in tokens, prompt included.
    """

    model: Model
    params: Params
    dtype: str
    mesh: Mesh
    path: Path | None
    stop_ids: tuple[int, ...]
    max_length: int

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        n_weights = f"{sum(leaf.size for leaf in leaves):,} weights"
        parts = [str(self.path or "in memory"), self.model.config.summary, n_weights, self.dtype]
        if self.mesh.size > 1:
            parts.append("mesh " + " x ".join(f"{k}={n}" for k, n in self.mesh.shape.items()))
        return f"Target({', '.join(parts)}{', shapes only' if self.is_abstract else ''})"

    @property
    def is_abstract(self) -> bool:
        """Whether only shapes are known: such a target is for planning, and computes nothing."""
        return isinstance(jax.tree.leaves(self.params)[0], jax.ShapeDtypeStruct)


def load_target(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    table: Table = TARGET,
) -> Target:
    """Load a checkpoint directory, or a hub id, onto a mesh.

    Args:
      path_or_id: a directory, or a hub id.
      dtype: "float32" or "bfloat16": of weights and cache.
      mesh: from `jspec.make_mesh`; one device where None.
      table: where logical axes go on the mesh.

    Raises:
      UserError: everything that can be wrong with the arguments or the files, and a model that
        reads in both directions.
    """
    return load_model(path_or_id, dtype=dtype, mesh=mesh, table=table, must_be_causal=True)


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    table: Table = TARGET,
    must_be_causal: bool = False,
) -> Target:
    """Load a checkpoint that may also be bidirectional, as `load_target` does.

    Args:
      path_or_id: a Hugging Face directory (safetensors, or `.bin` with torch), a llama2.c-style
        one, or an id on the hub.
      dtype: type of weights and cache: float32, bfloat16 (or float64, with x64 enabled).
      mesh: one device if not given.
      table: where logical axes go on the mesh.
      must_be_causal: refuse a bidirectional model before its weights are read.

    Raises:
      UserError: everything that can be wrong with the arguments or the files.
    """
    name = check_dtype(dtype)
    mesh = make_mesh() if mesh is None else mesh
    if not isinstance(mesh, Mesh):
        raise UserError(f"mesh: expected what jspec.make_mesh returns, given {shown(mesh)}")
    directory = local_directory(path_or_id)
    config = hf.read_config(directory)
    if must_be_causal:
        check_causal(config, directory)
    model = build(fit_to_mesh(config, mesh, table))
    _warn_of_penalty(directory)
    params = hf.read_params(directory, config, model, dtype=name, mesh=mesh, table=table)
    return Target(
        model=model,
        params=params,
        dtype=name,
        mesh=mesh,
        path=directory,
        stop_ids=read_stop_ids(directory),
        max_length=config.max_length,
    )


def abstract_target(
    config: DecoderConfig,
    *,
    dtype: str,
    mesh: Mesh,
    table: Table = TARGET,
    path: Path | None = None,
) -> Target:
    """What loading a model of this config would give, its weights being shapes.

    Raises:
      UserError: heads that the mesh does not divide.
    """
    model = build(fit_to_mesh(config, mesh, table))
    return Target(
        model=model,
        params=sharded_shapes(abstract_params(model, jnp.dtype(dtype)), mesh, table),
        dtype=dtype,
        mesh=mesh,
        path=path,
        stop_ids=() if path is None else read_stop_ids(path),
        max_length=config.max_length,
    )


def load_beside(
    target: Target,
    path_or_id: str | Path,
    *,
    table: Table = REPLICATED,
    must_be_causal: bool = False,
) -> Target:
    """A drafter's model, in the target's dtype and on its mesh; as abstract as the target is.

    Raises:
      UserError: as `load_model`; of an abstract one, where its config is not here.
    """
    if not target.is_abstract:
        return load_model(
            path_or_id,
            dtype=target.dtype,
            mesh=target.mesh,
            table=table,
            must_be_causal=must_be_causal,
        )
    found = find_shapes(path_or_id)
    if must_be_causal:
        check_causal(found.config, found.name)
    return abstract_target(
        found.config, dtype=target.dtype, mesh=target.mesh, table=table, path=found.directory
    )


def directory_beside(target: Target, path_or_id: str | Path) -> Path:
    """Where a drafter's files are; for an abstract target nothing is downloaded.

    Raises:
      UserError: neither a directory nor an id that can be fetched, or may be.
    """
    if not target.is_abstract:
        return local_directory(path_or_id)
    directory = find_directory(path_or_id)
    if directory is None:
        raise UserError(
            f"{path_or_id}: no directory here, and not in the hub's cache; give a directory"
        )
    return directory


def check_causal(config: DecoderConfig, name: str | Path) -> None:
    """Refuse a model that cannot decode from left to right.

    Raises:
      UserError: rows of the model see what comes after them.
    """
    if not config.is_causal:
        raise UserError(
            f"{name}: a {config.family} model that reads in both directions cannot be decoded from "
            "left to right; give a causal model here, this one as a diffusion drafter"
        )


def check_dtype(dtype: Any) -> str:
    """The name of a supported type."""
    try:
        name = "None" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1")
    return name


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """Stop ids of a checkpoint: `generation_config.json` first, else `config.json`.

    Nothing else is taken from `generation_config.json`.
    """
    generation = _read_generation_config(directory)
    config = read_json(directory / "config.json")
    for values, name in (
        (generation, "eos_token_id"),
        (config, "eos_token_id"),
        (config, "eos_id"),
    ):
        ids = values.get(name)
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(token) is int and token >= 0 for token in ids):
                file = GENERATION_FILE if values is generation else "config.json"
                raise UserError(
                    f"{directory / file}: {name} must be a token id, a list of them or null, got "
                    f"{values[name]!r}; correct it"
                )
            return tuple(dict.fromkeys(ids))
    return ()


def _warn_of_penalty(directory: Path) -> None:
    """A repetition penalty is ignored, because the law has no memory."""
    penalty = _read_generation_config(directory).get("repetition_penalty")
    if penalty not in (None, 1, 1.0):
        path = directory / GENERATION_FILE
        logger.warning("%s: repetition_penalty %s is ignored", path, penalty)


def _read_generation_config(directory: Path) -> dict[str, Any]:
    path = directory / GENERATION_FILE
    return read_json(path) if path.is_file() else {}
