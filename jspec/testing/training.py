"""Tiny training runs: one layer, random text, a few steps; everything a test may want to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jspec.models.model import Model, build
from jspec.state import Params
from jspec.testing.models import tiny_config
from jspec.train.config import LoopConfig, OptimizerConfig, TrainMeshConfig
from jspec.train.data import TextData
from jspec.train.encode import Encoded
from jspec.train.loop import Outcome, train
from jspec.train.objective import NextToken, Objective
from jspec.train.packing import Packed, pack
from jspec.train.trainable import language_model

LENGTH = 16


def training_model(**changes) -> Model:
    """One layer of width 16 with grouped heads."""
    sizes = dict(width=16, mlp_width=24, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8)
    return build(tiny_config(**(sizes | changes)))


def random_rows(n: int, *, seed: int, longest: int = 30, vocab_size: int = 61) -> list[Encoded]:
    """Rows of 1 to `longest` random tokens, all of them learnt."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, vocab_size, rng.integers(1, longest + 1)) for _ in range(n)]
    return [Encoded(t.astype(np.int32), np.ones(len(t), np.float32)) for t in tokens]


def random_packed(n: int, *, seed: int, length: int = LENGTH) -> Packed:
    return pack(random_rows(n, seed=seed), length)


def random_text() -> TextData:
    """Two corpora, each with a held-out part that does not fill whole batches."""
    return TextData(
        train={"a": random_packed(20, seed=0), "b": random_packed(12, seed=1)},
        repeats={"a": 1.0, "b": 1.5},
        tests={"a": random_packed(6, seed=2), "b": random_packed(3, seed=3)},
    )


def loop_config(*, data: int = 1, fsdp: int = 1, optimizer: Any = None, **changes) -> LoopConfig:
    """Four steps of eight sequences in float32, every step logged, evaluated and saved by twos."""
    fields: dict[str, Any] = dict(
        steps=4,
        batch_size=8,
        compute_dtype="float32",
        log_every=1,
        eval_every=2,
        save_every=2,
        optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-2, **(optimizer or {})),
        mesh=TrainMeshConfig(data=data, fsdp=fsdp),
    )
    return LoopConfig(**(fields | changes))


def run_training(
    directory: Path,
    config: LoopConfig,
    *,
    objective: Objective | None = None,
    frozen: Params = None,
    **options,
) -> Outcome:
    """`train` on random text, with the options of `train`."""
    model = training_model()
    return train(
        objective or NextToken(model),
        random_text(),
        dataclasses.replace(language_model(model), frozen=frozen),
        config=config,
        directory=directory,
        **options,
    )
