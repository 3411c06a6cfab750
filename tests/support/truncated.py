"""Truncated drafts, written as the trainer writes them: layers and the final norm alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jspec.checkpoints.draft_vocabulary import write_counts
from jspec.checkpoints.target import Target
from jspec.checkpoints.write import write_checkpoint
from jspec.models.model import build
from jspec.models.weights import SHARED
from jspec.testing.models import in_memory, perturbed


def truncated(target: Target, n_layers: int = 1, *, scale: float = 0.05, **changes: Any) -> Target:
    """The first layers and the norm of a target, with noise on them, between the target's own
    embedding and head; `changes` are fields of the config."""
    config = target.model.config
    first = {"n_layers": n_layers, "windows": config.windows[:n_layers]} | changes
    model = dataclasses.replace(config, **first)
    noisy = perturbed(target, scale=scale).params
    params = target.params | {"layers": noisy["layers"][:n_layers], "norm": noisy["norm"]}
    return in_memory(build(model), params)


def write_truncated(
    directory: Path,
    target: Target,
    n_layers: int = 1,
    *,
    counts: np.ndarray | None = None,
    decoder: dict[str, Any] | None = None,
    **values: Any,
) -> Target:
    """Write a truncated draft of a target, and return the model that it stands for.

    Args:
      counts: how often each token was seen.
      decoder: fields of the draft's own config.
      values: more entries of `config.json`.
    """
    whole = truncated(target, n_layers, **(decoder or {}))
    write_checkpoint(
        directory,
        {name: part for name, part in whole.params.items() if name not in SHARED},
        whole.model.config,
        extra_config={"shares_embedding": True} | values,
    )
    if counts is not None:
        write_counts(directory, counts)
    return whole


def edit_config(directory: Path, **values: Any) -> None:
    """Change entries of a directory's `config.json`."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
