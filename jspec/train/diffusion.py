"""What `kind: diffusion` trains and minimises, from a config and a causal model to begin with.

In reading order: the model (`diffusion_model`), the objective (`objective_of`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jspec.models.hf_config import FAMILIES
from jspec.models.model import Model, build
from jspec.state import Params
from jspec.train.block_diffusion import BlockDiffusion
from jspec.train.config import DiffusionConfig
from jspec.train.masked_diffusion import MaskedDiffusion
from jspec.train.objective import Objective


def diffusion_model(
    model: Model, start: Params | None, *, mask_id: int, is_causal: bool
) -> tuple[Model, Params | None]:
    """A causal model as one that knows a mask, and its weights if it has some.

    Args:
      start: weights of `model`; None for random ones. A mask that is a new id begins as the mean
        of all tokens, biases as 0.
      is_causal: of the text; masks are seen by nobody but masks.
    """
    decoder = model.config
    family = "Dream" if "Dream" in FAMILIES else decoder.family
    has_bias = decoder.has_qkv_bias or (family in FAMILIES and FAMILIES[family].qkv_bias)
    changed = dataclasses.replace(
        decoder,
        family=family,
        vocab_size=max(decoder.vocab_size, mask_id + 1),
        has_qkv_bias=has_bias,
        is_causal=is_causal,
    )
    if start is not None:
        if has_bias and not decoder.has_qkv_bias:
            start = _with_biases(start)
        start = _with_rows(start, changed.vocab_size)
    return build(changed), start


def _with_biases(params: Params) -> Params:
    """The same function: queries, keys and values add zeros."""

    def one(layer: Any) -> Any:
        attention = dict(layer["attention"])
        for name in "qkv":
            matrix = attention[name]
            attention[f"{name}_bias"] = jnp.zeros(matrix.shape[1:], matrix.dtype)
        return {**layer, "attention": attention}

    return {**params, "layers": type(params["layers"])(one(layer) for layer in params["layers"])}


def _with_rows(params: Params, vocab_size: int) -> Params:
    """Embedding and head with more ids, each the mean of those there are."""

    def grown(table: Any, axis: int) -> Any:
        missing = vocab_size - table.shape[axis]
        mean = jnp.mean(table, axis=axis, keepdims=True)
        return jnp.concatenate([table, jnp.repeat(mean, missing, axis=axis)], axis=axis)

    params = {**params, "embedding": grown(params["embedding"], 0)}
    if "head_weight" in params:
        params["head_weight"] = grown(params["head_weight"], 1)
    return params


def objective_of(
    config: DiffusionConfig, model: Model, teacher: Model | None, mask_id: int
) -> Objective:
    """What a config minimises."""
    both: dict[str, Any] = dict(
        model=model,
        mask_id=mask_id,
        is_shifted=config.is_shifted,
        teacher=teacher,
        teacher_share=config.teacher_share,
        suffix_share=config.suffix_share,
        k_max=config.k_max,
        slot_decay=config.slot_decay,
        remat=config.remat,
    )
    if config.text_attention == "causal":
        return BlockDiffusion(n_blocks=config.n_blocks, **both)
    return MaskedDiffusion(
        weighting=config.weighting,
        min_ratio=config.min_ratio,
        piece_lengths=tuple(config.piece_lengths),
        anneal_steps=config.anneal_steps,
        **both,
    )
