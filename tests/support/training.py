"""Tiny training runs: one layer, random text, a few steps; everything a test may want to change.

In reading order: models and text, `loop_config`, what is trained (`PARTS`), `run_training`, and a
run that kills itself.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jspec.models import sar_head
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.models.model import Model, build, random_params
from jspec.models.sar_head import SarConfig
from jspec.models.weights import param_shardings
from jspec.sharding import TRAINING, make_training_mesh
from jspec.state import Params
from jspec.testing.models import tiny_config
from jspec.train import diffusion
from jspec.train.block_diffusion import BlockDiffusion
from jspec.train.config import LoopConfig, OptimizerConfig, TrainMeshConfig
from jspec.train.csgd import Csgd
from jspec.train.data import TextData
from jspec.train.encode import Encoded
from jspec.train.falcon import trainable_of
from jspec.train.journal import read_journal
from jspec.train.loop import TrainingOutcome, train
from jspec.train.objective import NextToken, Objective
from jspec.train.packing import Packed, pack
from jspec.train.token_file import INDEX, TextFile, codes_of, index_of
from jspec.train.trainable import Trainable, language_model

LENGTH = 16


def training_model(**changes) -> Model:
    """One layer of width 16 with grouped heads."""
    sizes = dict(width=16, mlp_width=24, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8)
    return build(tiny_config(**(sizes | changes)))


@functools.cache
def random_weights(model: Model, seed: int = 0) -> Params:
    """Weights of a model that has learnt nothing, made once."""
    make = functools.partial(random_params, model, scale=0.5)
    return jax.jit(make)(key=jax.random.key(seed))


def random_rows(n: int, *, seed: int, longest: int = 30, vocab_size: int = 61) -> list[Encoded]:
    """Rows of 1 to `longest` random tokens, all of them learnt."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, vocab_size, rng.integers(1, longest + 1)) for _ in range(n)]
    return [Encoded(t.astype(np.int32), np.ones(len(t), np.float32)) for t in tokens]


def texts_of(rows: Sequence[Encoded]) -> TextFile:
    """Texts in memory, as a file has them."""
    ends = np.cumsum([len(row.tokens) for row in rows], dtype=np.int64)
    lines = [index_of(row, end, False) for row, end in zip(rows, ends, strict=True)]
    codes = np.concatenate([np.zeros(0, np.int32), *map(codes_of, rows)])
    return TextFile(codes=codes, index=np.asarray(lines, INDEX))


def random_packed(n: int, *, seed: int, length: int = LENGTH) -> Packed:
    return pack(texts_of(random_rows(n, seed=seed)), length)


def random_text() -> TextData:
    """Two corpora, each with a held-out part that does not fill whole batches."""
    return TextData(
        train={"a": random_packed(20, seed=0), "b": random_packed(12, seed=1)},
        repeats={"a": 1.0, "b": 1.5},
        tests={"a": random_packed(6, seed=2), "b": random_packed(3, seed=3)},
    )


class TwoParts(TextData):
    """Text whose batches have their sequences as two processes put them together."""

    def iterator(self, *, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> Any:
        assert processes == 1
        parts = [
            super(TwoParts, self).iterator(
                batch_size=batch_size, seed=seed, process=part, processes=2
            )
            for part in range(2)
        ]
        return _Joined(parts)


class _Joined:
    """Batches of several iterators, one after the other in each."""

    def __init__(self, parts: list[Any]):
        self._parts = parts

    def __next__(self) -> dict[str, np.ndarray]:
        batches = [next(part) for part in self._parts]
        return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        return self._parts[0].get_state()


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


def language_parts(config: LoopConfig) -> tuple[Objective, Trainable]:
    """A language model."""
    model = training_model()
    return NextToken(model), language_model(model)


def falcon_parts(config: LoopConfig) -> tuple[Objective, Trainable]:
    """A Falcon head beside a random target, which is spread over the mesh of a config."""
    target = training_model()
    mesh = make_training_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    weights = jax.jit(
        lambda key: random_params(target, key=key, scale=0.35),
        out_shardings=param_shardings(target, mesh, TRAINING),
    )(jax.random.key(5))
    blocks = dataclasses.replace(target.config, windows=())
    head = sar_head.build(SarConfig(decoder=blocks, block_size=2))
    objective = Csgd(head=head, target=target, steps=config.steps or 1)
    return objective, trainable_of(head, weights)


def diffusion_parts(config: LoopConfig) -> tuple[Objective, Trainable]:
    """A block diffusion model beside a random teacher."""
    teacher, how = (
        training_model(),
        DiffusionConfig(mask_id=60, is_shifted=True, n_ids=60, is_text_causal=True),
    )
    model = DiffusionModel(model=training_model(is_causal=False), config=how)
    objective = BlockDiffusion(
        model=model.model, mask_id=60, teacher=teacher, suffix_share=0.5, k_max=3, n_blocks=4
    )
    weights = random_params(teacher, key=jax.random.key(5), scale=0.35)
    trainable = diffusion.trainable_of(model, None, extra_config={})
    return objective, dataclasses.replace(trainable, frozen=weights)


PARTS = {"model": language_parts, "falcon": falcon_parts, "diffusion": diffusion_parts}
"""What is minimised and what is trained, by kind."""


def run_training(
    directory: Path,
    config: LoopConfig,
    *,
    kind: str = "model",
    objective: Objective | None = None,
    frozen: Params = None,
    data: TextData | None = None,
    **options,
) -> TrainingOutcome:
    """`train` on random text, with the options of `train`.

    Args:
      objective, frozen, data: in place of the kind's own.
    """
    usual, trainable = PARTS[kind](config)
    if frozen is not None:
        trainable = dataclasses.replace(trainable, frozen=frozen)
    return train(
        objective or usual,
        data or random_text(),
        trainable,
        config=config,
        directory=directory,
        **options,
    )


def told(directory: Path) -> list[dict]:
    """The journal of a run without what a clock says."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_journal(directory)]


KILLED = """
import os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 8)
from tests.support.training import loop_config, run_training

directory, kind, step, changes = sys.argv[1:]

def report(record):
    if record["step"] == int(step) and "loss" in record:
        os.kill(os.getpid(), signal.SIGKILL)

run_training(Path(directory), loop_config(**eval(changes)), kind=kind, report=report)
"""


def kill_at(directory: Path, *, kind: str, step: int, changes: dict[str, Any]) -> None:
    """A run in a process that kills itself when a step is told, maybe while it saves.

    Args:
      changes: of `loop_config`.
    """
    command = [sys.executable, "-c", KILLED, str(directory), kind, str(step), repr(changes)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr[-3000:]
