"""Makes what `kind: diffusion` trains and minimises, of a config and a causal model.

In reading order: the model (`diffusion_model`), how it leaves (`trainable_of`), the objective.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jspec.checkpoints.diffusion import write_diffusion
from jspec.checkpoints.families import FAMILIES
from jspec.models.diffusion import DiffusionConfig as MaskConfig
from jspec.models.diffusion import DiffusionModel
from jspec.models.model import Model, build
from jspec.state import Params
from jspec.train.block_diffusion import BlockDiffusion
from jspec.train.config import DiffusionTrainingConfig
from jspec.train.masked_diffusion import MaskedDiffusion
from jspec.train.objective import Objective, made_from
from jspec.train.trainable import Trainable, language_model


def diffusion_model(
    config: DiffusionTrainingConfig,
    causal: Model,
    start: Params | None,
    *,
    mask_id: int,
    n_ids: int,
) -> tuple[DiffusionModel, Params | None]:
    """Make the model of a config, and the weights it starts from (None: random ones).

    One that is shifted and sees its whole text is written as Dream, which has biases.

    Args:
      causal: a model of the same sizes, as it would be without a mask.
      start: its weights. A mask that is a new id begins as the mean of all tokens, biases as 0.
      n_ids: of the tokenizer.
    """
    decoder = causal.config
    is_text_causal = config.text_attention == "causal"
    is_dream = config.is_shifted and not is_text_causal
    family = "Dream" if is_dream else decoder.family
    has_bias = decoder.has_qkv_bias or FAMILIES[family].biases.get("qkv") is True
    changed = dataclasses.replace(
        decoder,
        family=family,
        vocab_size=max(decoder.vocab_size, mask_id + 1),
        has_qkv_bias=has_bias,
        is_causal=False,
    )
    if start is not None:
        lacks_biases = has_bias and not decoder.has_qkv_bias
        start = _adapted(start, changed.vocab_size, has_new_biases=lacks_biases)
    how = MaskConfig(
        mask_id=mask_id,
        is_shifted=config.is_shifted,
        n_ids=n_ids,
        is_text_causal=is_text_causal,
    )
    return DiffusionModel(model=build(changed), config=how), start


def trainable_of(
    model: DiffusionModel, start: Params | None, *, extra_config: dict[str, Any]
) -> Trainable:
    """Make the model trainable."""

    def write(params: Params, directory: Path) -> None:
        write_diffusion(directory, params, model, extra_config=extra_config)

    return dataclasses.replace(language_model(model.model, start=start), write=write)


@functools.partial(jax.jit, static_argnames=("vocab_size", "has_new_biases"))
def _adapted(params: Params, vocab_size: int, *, has_new_biases: bool) -> Params:
    """Add what a diffusion model has more; in one program, since hosts do it together."""
    return _with_rows(_with_biases(params) if has_new_biases else params, vocab_size)


def _with_biases(params: Params) -> Params:
    """Add biases of zero to queries, keys and values."""

    def one(layer: Any) -> Any:
        attention = dict(layer["attention"])
        for name in "qkv":
            matrix = attention[name]
            attention[f"{name}_bias"] = jnp.zeros(matrix.shape[1:], matrix.dtype)
        return {**layer, "attention": attention}

    return {**params, "layers": type(params["layers"])(one(layer) for layer in params["layers"])}


def _with_rows(params: Params, vocab_size: int) -> Params:
    """Give embedding and head more ids, each the mean of those there are."""

    def grown(table: Any, axis: int) -> Any:
        missing = vocab_size - table.shape[axis]
        mean = jnp.mean(table, axis=axis, keepdims=True)
        return jnp.concatenate([table, jnp.repeat(mean, missing, axis=axis)], axis=axis)

    params = {**params, "embedding": grown(params["embedding"], 0)}
    if "head_weight" in params:
        params["head_weight"] = grown(params["head_weight"], 1)
    return params


def objective_of(
    config: DiffusionTrainingConfig, model: DiffusionModel, teacher: Model | None
) -> Objective:
    """Make what a config minimises."""
    kind = BlockDiffusion if config.text_attention == "causal" else MaskedDiffusion
    return made_from(config, kind, model=model.model, mask_id=model.config.mask_id, teacher=teacher)
