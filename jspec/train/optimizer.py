"""Makes optimizers and the learning rate over time with Optax."""

from __future__ import annotations

import jax
import optax

from jspec.state import Params
from jspec.train.config import OptimizerConfig

MUON_RMS = 0.2
"""Scale of an orthogonalised update, so that one learning rate suits Muon and AdamW (Liu et al.
2025, arXiv 2502.16982, section 2.2)."""


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rise linearly from 0, then fall to the final share, which a step after the last has.

    With `decay: linear` the rate is constant until the last `decay_steps`, so that a run may be
    made longer or shorter while it is on (Hu et al. 2024, MiniCPM, section 4).
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_share
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    rising = optax.linear_schedule(0.0, peak, warmup)
    if config.decay == "cosine":
        falling = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_share)
        return optax.join_schedules([rising, falling], [warmup])
    length = min(config.decay_steps or max(steps // 5, 1), max(steps - warmup, 1))
    falling = optax.linear_schedule(peak, final, length)
    return optax.join_schedules(
        [rising, optax.constant_schedule(peak), falling], [warmup, steps - length]
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip, then step with AdamW or Muon. Embeddings, heads and vectors are AdamW's in both."""
    schedule = make_schedule(config, steps)
    clips = []
    if config.max_gradient_value:
        clips.append(optax.clip(config.max_gradient_value))
    if config.max_gradient_norm:
        clips.append(optax.clip_by_global_norm(config.max_gradient_norm))
    if config.name == "adamw":
        decay = {"weight_decay": config.weight_decay, "mask": _matrices}
        update = optax.adamw(schedule, b1=config.b1, b2=config.b2, **decay)
    else:
        update = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            weight_decay_mask=_matrices,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=_muon_dimensions,
            consistent_rms=MUON_RMS,
        )
    return _promoting(optax.chain(*clips, update))


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Allow implicit promotion, which Optax counts on and jspec's callers may have switched off."""

    def init(params):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return inner.init(params)

    def update(updates, state, params=None, **_):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _muon_dimensions(params: Params) -> Params:
    """Tell hidden matrices apart; None for what AdamW does."""

    def one(path, leaf):
        is_table = str(getattr(path[-1], "key", "")) in ("embedding", "head_weight")
        if leaf.ndim != 2 or is_table:
            return None
        return optax.contrib.MuonDimensionNumbers((0,), (1,))

    return jax.tree.map_with_path(one, params)
