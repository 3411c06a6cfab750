"""Directories of diffusion models: a bidirectional decoder, its mask and its shift.

In reading order: `load_diffusion`, which drafts for a target; `describe`, for a model that is
loaded; `write_diffusion`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.families import FAMILIES
from jspec.checkpoints.target import Target, count_ids
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.sharding import REPLICATED, Table
from jspec.state import Params


def load_diffusion(
    path_or_id: str | Path | Checkpoint,
    *,
    target: Target,
    is_shifted: bool | None = None,
    forbidden: tuple[int, ...] = (),
    table: Table = REPLICATED,
) -> tuple[DiffusionModel, Params]:
    """Load a checkpoint that drafts for a target, in the target's dtype and on its mesh.

    Of an abstract target, its shapes.

    Args:
      path_or_id: a directory, a shipped model or a hub id; Dream, LLaDA, or any other family with
        `is_causal: false`, `is_shifted` and `mask_token_id` in its `config.json`.
      is_shifted: overrides what family and `config.json` say.
      forbidden: ids never to be predicted, besides the mask, the beginning of a text, and what the
        target does not know.
      table: where logical axes go on the mesh.

    Raises:
      UserError: everything that can be wrong with the files, a causal model, another tokenizer.
    """
    loaded = load_beside(target, path_or_id, table=table)
    model = describe(
        loaded,
        n_ids=count_ids(target),
        is_shifted=is_shifted,
        forbidden=forbidden,
    )
    return model, loaded.params


def describe(
    loaded: Target,
    *,
    n_ids: int | None = None,
    is_shifted: bool | None = None,
    forbidden: tuple[int, ...] = (),
) -> DiffusionModel:
    """Add to a loaded bidirectional model what its `config.json` says of masks.

    Args:
      n_ids: the first id that is never predicted; the length of the model's own tokenizer if not
        given.
      is_shifted, forbidden: as in `load_diffusion`.

    Raises:
      UserError: a causal model, or no word on the mask or the shift.
    """
    assert loaded.checkpoint is not None, "a model in memory has no config.json"
    values, where = loaded.checkpoint.values, loaded.checkpoint.where
    family = FAMILIES[loaded.model.config.family]
    if is_shifted is None:
        is_shifted = values.get("is_shifted", family.is_shifted)
    if not isinstance(is_shifted, bool):
        raise UserError(
            f"{where}/config.json: is_shifted must tell whether row r predicts position r + 1"
            f" (true) or r (false), got {is_shifted!r}"
        )
    mask_id = values.get("mask_token_id")
    if isinstance(mask_id, bool) or not isinstance(mask_id, int):
        raise UserError(f"{where}/config.json: mask_token_id must be a token id, got {mask_id!r}")
    is_text_causal = values.get("is_text_causal", False)
    if not isinstance(is_text_causal, bool):
        raise UserError(
            f"{where}/config.json: is_text_causal must be true or false, got {is_text_causal!r}"
        )
    begins = values.get("bos_token_id")
    if isinstance(begins, int) and begins not in loaded.stop_ids:
        forbidden = (begins, *forbidden)
    config = DiffusionConfig(
        mask_id=mask_id,
        is_shifted=is_shifted,
        is_text_causal=is_text_causal,
        n_ids=min(count_ids(loaded) if n_ids is None else n_ids, loaded.vocab_size),
        forbidden=forbidden,
    )
    try:
        return DiffusionModel(model=loaded.model, config=config)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def write_diffusion(
    directory: Path,
    params: Params,
    model: DiffusionModel,
    *,
    extra_config: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint that `load_diffusion` reads, with its mask id and its shift.

    Args:
      extra_config: more entries of `config.json`, such as other token ids.
    """
    family, config = FAMILIES[model.model.config.family], model.config
    said: dict[str, Any] = {"mask_token_id": config.mask_id}
    if family.is_shifted is not config.is_shifted:
        said["is_shifted"] = config.is_shifted
    if config.is_text_causal:
        said["is_text_causal"] = True
    extra = said | (extra_config or {})
    write_checkpoint(directory, params, model.model.config, extra_config=extra)
