"""What scripts that time rounds at a target's shape share: flags, random weights, their record."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.common.shapes import n_parameters, random_model
from jspec.checkpoints.target import Target
from jspec.models.config import DecoderConfig
from jspec.sharding import make_mesh
from jspec.state import Params


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Where the record goes, the type of all weights, and `--tiny`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the record")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--tiny", action="store_true", help="tiny shapes in float32: a check of the script")


def random_target(shape: str, dtype: str, n_layers: int | None = None) -> Target:
    """A target of a shape with random weights.

    Args:
      n_layers: fewer or more of them than the shape has.
    """
    model, params = random_model(shape, dtype, n_layers)
    return Target(
        model=model,
        params=params,
        dtype=dtype,
        mesh=make_mesh(),
        checkpoint=None,
        stop_ids=(),
        max_length=model.config.max_length,
    )


def n_read(params: Params, config: DecoderConfig) -> int:
    """Weights that a pass reads: of an embedding that is no head as well it looks up a few rows."""
    embedding = 0 if config.has_tied_head else config.vocab_size * config.width
    return n_parameters(params) - embedding


def write_record(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "round.json").write_text(json.dumps(record, indent=1) + "\n")
