"""A few seconds on the devices at hand, for a `Hardware` of their own.

In reading order: `measure`; blocks of attention and MLP at growing widths, rows at the largest one,
small collectives over more and more devices; what follows from them.

An attention block is timed as a decoder whose MLPs are left out, an MLP as one without attention.
The largest blocks have the shapes of the models that are planned for, the vocabulary is tiny, and a
loop on the device goes through all layers so often that starting it does not count. Variants take
turns, medians count.

Source: ours; Wu et al. 2025 (EasySpec, arXiv 2502.02493) measured their engine only as a whole.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jspec.bench.timing import interleaved
from jspec.models.blocks import causal_block
from jspec.models.config import DecoderConfig
from jspec.models.layer_groups import singles
from jspec.models.model import (
    ALONE,
    Model,
    Parts,
    build,
    empty_cache,
    merged,
    random_params,
    through,
)
from jspec.plan.easyspec.hardware import Hardware
from jspec.plan.easyspec.shapes import BYTES, ModelShape
from jspec.sharding import make_mesh

WIDTHS = (64, 512)
"""Of the blocks that are smaller than the model's."""

HEAD_DIM, HEADS_A_KV_HEAD, VOCAB = 64, 4, 128
LAYERS, LARGEST = 8, 256e6
"""Layers of the decoders that are timed: at most, and fewer where they had more bytes."""

ROWS = (1, 4, 12, 32, 64)

LOOP_S, USUAL = 0.02, 1e10
"""Seconds that a loop is to take, where memory has this bandwidth."""

UNEXPLAINED = 1.2
"""Times what its bytes take: a block that needs longer has another bottleneck."""

MESSAGE = (8, 1024)
"""Rows and width of what collectives move."""

STEPS = 200
"""Collectives in a loop."""


class _Attention(Parts):
    """A device that leaves MLPs out."""

    def feed(self, layer, x):
        return jnp.zeros_like(x)


class _Mlp(Parts):
    """A device that leaves attention out."""

    def mix(self, decoder, group, x, cache, rows):
        return [jnp.zeros_like(x) for _ in group], cache


def measure(
    drafter: ModelShape,
    target: ModelShape,
    *,
    context: int,
    dtype: str = "float32",
    repeats: int = 3,
) -> Hardware:
    """Bandwidth, floors, compute ceiling, rows and latencies of this computer's devices.

    Bandwidth and rows are measured at the shapes of both models, and kept apart: smaller weights
    may fit a cache.

    Args:
      context: tokens of text before those of a pass, which attention reads.
      repeats: times that every variant is timed.
    """
    size, device = BYTES[dtype], jax.devices()[0]
    configs = [_config(width) for width in WIDTHS if width < drafter.config.width]
    small = [ModelShape(name="", config=c, weight_bytes=size) for c in configs]
    models = [
        dataclasses.replace(_few_layers(shape), weight_bytes=size) for shape in (drafter, target)
    ]
    runs = {
        (name, shape): _Run(shape, parts, 1, context, dtype)
        for shape in (*small, *models)
        for name, parts in (("attention", _Attention()), ("mlp", _Mlp()))
    } | {(shape, n): _Run(shape, ALONE, n, context, dtype) for shape in models for n in ROWS}
    links = _links(dtype)
    timed = interleaved({**runs, **links}, rounds=repeats)
    seconds = {key: timed[key]["median"] / run.n_layers for key, run in runs.items()}
    latencies = {
        name: {n: timed[name, n]["median"] / STEPS for which, n in links if which == name}
        for name in ("sum", "gather")
    }
    same = {
        "name": device.device_kind,
        "memory": _memory(device),
        "all_reduce": latencies["sum"] or 0.0,
        "all_gather": latencies["gather"] or None,
    }
    ours, theirs = (
        Hardware(
            **same,
            **of_blocks(seconds, (*small, shape), context),
            source=f"measured, {jax.device_count()} of them, {dtype}, blocks as of {shape.name}",
        )
        for shape in models
    )
    return ours.model_copy(update={"target": theirs})


def of_blocks(
    seconds: Mapping[Any, float], shapes: Sequence[ModelShape], context: int = 0
) -> dict[str, Any]:
    """What the times of a layer say: by (`attention` or `mlp`, shape), and by (shape, rows).

    Bandwidth is that of the last shape's MLP, the compute ceiling what most rows reach. A floor is
    the least time of a block; but where the last shape's attention takes longer than its bytes
    explain, streaming is not what it waits for: its own time is the floor then, at this context.
    """
    last, measured_with = shapes[-1], context
    by_rows = {n: s for (shape, n), s in seconds.items() if shape == last}
    bandwidth = last.mlp_bytes / seconds["mlp", last]
    attention = by_rows[1] - seconds["mlp", last]
    read = last.attention_bytes() + context * last.kv_bytes()
    if attention < UNEXPLAINED * read / bandwidth:
        attention, context = min(seconds["attention", shape] for shape in shapes), 0
    weights, most = last.attention_weights() + last.mlp_weights, max(by_rows)
    products = 2 * weights + 4 * last.config.n_heads * last.config.head_dim * measured_with
    return {
        "bandwidth": bandwidth,
        "flops": products * most / by_rows[most],
        "attention_floor": attention,
        "mlp_floor": min(seconds["mlp", shape] for shape in shapes),
        "rows": {n: max(s / by_rows[1], 1.0) for n, s in sorted(by_rows.items())},
        "context": context,
    }


def _few_layers(shape: ModelShape) -> ModelShape:
    """The first layers of a model, without its vocabulary."""
    a_layer = shape.attention_bytes() + shape.mlp_bytes
    n_layers = max(min(LAYERS, shape.n_layers, int(LARGEST / a_layer)), 1)
    config = dataclasses.replace(
        shape.config,
        n_layers=n_layers,
        windows=shape.config.windows[:n_layers],
        vocab_size=VOCAB,
        is_causal=True,
    )
    return dataclasses.replace(shape, config=config)


def _config(width: int) -> DecoderConfig:
    n_heads = width // HEAD_DIM
    return DecoderConfig(
        vocab_size=VOCAB,
        width=width,
        mlp_width=width * 11 // 4,
        n_layers=LAYERS,
        n_heads=n_heads,
        n_kv_heads=max(n_heads // HEADS_A_KV_HEAD, 1),
        head_dim=HEAD_DIM,
        max_positions=256,
    )


@functools.partial(jax.jit, static_argnames=("model", "parts", "rows", "context", "loops"))
def _passes(params, model: Model, cache, *, parts: Parts, rows: int, context: int, loops: int):
    tokens = jnp.zeros((1, rows), jnp.int32)
    groups = singles(model.config.n_layers)

    def step(_, carry):
        cache, tokens = carry
        block = causal_block(jnp.full((1,), context, jnp.int32), rows)
        decoder = merged(model, params)
        output, cache = through(decoder, model.config, cache, tokens, block, groups, parts=parts)
        is_never = jnp.max(output.logits, axis=-1) > 1e30
        return cache, jnp.where(is_never, 1, tokens)

    return lax.fori_loop(0, loops, step, (cache, tokens))


class _Run:
    """A loop of passes of one kind.

    Attributes:
      n_layers: that one call goes through.
    """

    def __init__(self, shape: ModelShape, parts: Parts, rows: int, context: int, dtype: str):
        loops = int(min(max(LOOP_S * USUAL / shape.layers_bytes, 4), 64))
        self.n_layers = loops * shape.n_layers
        model, type_ = build(shape.config), jnp.dtype(dtype)
        self._call = functools.partial(
            _passes,
            random_params(model, key=jax.random.key(0), dtype=type_),
            model,
            empty_cache(shape.config, 1, context + max(ROWS), type_),
            parts=parts,
            rows=rows,
            context=context,
            loops=loops,
        )

    def __call__(self) -> object:
        return self._call()


def _links(dtype: str) -> dict[tuple[str, int], Callable[[], object]]:
    """Collectives over 2, 4, ... devices."""
    variants, devices = {}, 2
    while devices <= jax.device_count():
        for name in ("sum", "gather"):
            variants[name, devices] = _collectives(name, devices, dtype)
        devices *= 2
    return variants


def _collectives(name: str, devices: int, dtype: str) -> Callable[[], object]:
    mesh = make_mesh(tensor=devices)

    def body(x):
        def step(_, x):
            if name == "sum":
                return lax.psum(x, "tensor") / devices
            return lax.all_gather(x, "tensor")[0]

        return lax.fori_loop(0, STEPS, step, x)

    where = PartitionSpec("tensor")
    loop = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=where, out_specs=where, check_vma=False))
    rows, width = MESSAGE
    return functools.partial(loop, jnp.ones((rows * devices, width), jnp.dtype(dtype)))


def _memory(device) -> float:
    """Bytes of a device; on a processor, its share of the computer's."""
    known = device.memory_stats() or {}
    if "bytes_limit" in known:
        return float(known["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole / jax.local_device_count()
