"""Cosines between a drafter's exact pass and its passes in groups: the paper's Table 4, here.

    python -m experiments.easyspec.cosine --out runs/easyspec_cosine

Texts are held-out openings with what the target writes after them at temperature 1. Means are over
tokens, texts and layers, with 95 % intervals over texts; with and without the layers that open a
group. Writes table.md and a picture.

The same question in two readings. *Local*: every layer reads what enters its group in an exact
pass. *Propagated*: a whole pass in groups, so that groups read what groups before them made.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Table 4, which does not say which it is.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.common.ablation import make_parser
from experiments.common.estimates import Estimate, estimate
from experiments.common.held_out import held_out_openings
from experiments.common.pictures import BLUE, GREEN, Curve, Panel, draw_curves
from experiments.common.tables import make_tables, table
from jspec.checkpoints.target import Target, load_target
from jspec.drafters.easyspec.layer_groups import Groups, contiguous, singles
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.models.blocks import causal_block
from jspec.models.model import ForwardSteps, Model, empty_cache, merged
from jspec.ops.norms import rms_norm
from jspec.state import Params

SIZES = (2, 3, 4, 5, 6)
ROWS = 20
"""Texts of a pass."""

COLOURS = {"h": "black", "q": BLUE, "k": "#17becf", "v": GREEN, "attention": "#d62728"}
QUANTITIES = tuple(COLOURS)
READINGS = ("local", "propagated")

PAPER = {
    2: (0.93, 0.98, 0.99, 0.92, 0.93),
    3: (0.89, 0.97, 0.98, 0.86, 0.88),
    4: (0.86, 0.96, 0.97, 0.82, 0.83),
}
"""Llama 3 8B on MMLU, in the order of `QUANTITIES`."""

# --- what a pass computes ------------------------------------------------------------------------


class _Watching(ForwardSteps):
    """Keeps what attention reads and makes.

    Args:
      inputs: what every layer reads, in place of what it is given.
    """

    def __init__(self, inputs: Float[Array, "L B T D"] | None = None):
        self._inputs = inputs
        self.seen: dict[str, list[jax.Array]] = {name: [] for name in QUANTITIES}

    def mix(self, decoder, group, x, cache, rows):
        added = []
        for i in group:
            layer = decoder.layers[i]
            read = x if self._inputs is None else self._inputs[i]
            (mixed,), cache = super().mix(decoder, (i,), read, cache, rows)
            assert layer.attention_norm is not None  # heads alone have none
            normed = rms_norm(read, layer.attention_norm[...], layer.eps)
            projections = layer.attention._projections(normed, rows.cos, rows.sin)
            for name, value in zip(QUANTITIES, (read, *projections, mixed), strict=True):
                self.seen[name].append(value.reshape(*value.shape[:2], -1))
            added.append(mixed)
        return added, cache


def _watch(params: Params, model: Model, tokens, groups: Groups, inputs=None) -> dict[str, Array]:
    """By quantity: what enters a layer's attention, its projections, and what it adds."""
    rows, width = tokens.shape
    cache = empty_cache(model.config, rows, width, jax.tree.leaves(params)[0].dtype)
    watching = _Watching(inputs)
    block = causal_block(jnp.zeros((rows,), jnp.int32), width)
    watching.run(merged(model, params), model.config, cache, tokens, block, groups)
    return {name: jnp.stack(values) for name, values in watching.seen.items()}


@functools.partial(jax.jit, static_argnames=("model", "groups"))
def similarities(
    params: Params, model: Model, tokens: Int[Array, "B T"], groups: Groups
) -> dict[str, dict[str, Float[Array, "L B T"]]]:
    """Cosine of every quantity with that of an exact pass, by reading and quantity.

    Vectors have all heads of a layer. Texts are read whole, nothing of them calibrated.
    """
    alone = singles(model.config.n_layers)
    exact = _watch(params, model, tokens, alone)
    first = jnp.asarray([group[0] for group in groups for _ in group])
    found = {
        "local": _watch(params, model, tokens, alone, exact["h"][first]),
        "propagated": _watch(params, model, tokens, groups),
    }
    return {
        reading: {name: _cosine(exact[name], seen[name]) for name in QUANTITIES}
        for reading, seen in found.items()
    }


def _cosine(one: Float[Array, "*rows X"], other: Float[Array, "*rows X"]) -> Float[Array, "*rows"]:
    lengths = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    return jnp.sum(one * other, axis=-1) / jnp.maximum(lengths, 1e-30)


# --- means over texts ----------------------------------------------------------------------------


def approximated(groups: Groups) -> list[int]:
    """Layers that read something else than in the model: those that open no group."""
    return [layer for group in groups for layer in group[1:]]


def grouped(groups: Groups) -> list[int]:
    """Layers of groups of several, those that open one included."""
    return [layer for group in groups if len(group) > 1 for layer in group]


AVERAGED = {"approximated": approximated, "with those that open a group": grouped}


def mean_cosines(
    small: Target, texts: Sequence[Sequence[int]], groups: Groups
) -> dict[tuple[str, str, str], Estimate]:
    """Means over tokens, texts and layers, by reading, layers averaged and quantity."""
    lengths = np.asarray([len(text) for text in texts])
    longest = int(lengths.max())
    rows = jnp.asarray([[*text, *[0] * (longest - len(text))] for text in texts], jnp.int32)
    is_text = np.arange(longest)[None, :] < lengths[:, None]
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for first in range(0, len(texts), ROWS):
        piece = slice(first, first + ROWS)
        found = similarities(small.params, small.model, rows[piece], groups)
        for reading, name in itertools.product(READINGS, QUANTITIES):
            cosine = np.where(is_text[piece], np.asarray(found[reading][name]), 0)
            sums.setdefault((reading, name), []).append(cosine.sum(axis=-1))
    means = {}
    for reading, (which, layers_of), name in itertools.product(
        READINGS, AVERAGED.items(), QUANTITIES
    ):
        layers = layers_of(groups)
        by_text = np.concatenate(sums[reading, name], axis=1)[layers].sum(axis=0)
        means[reading, which, name] = estimate((by_text, lengths * len(layers)))
    return means


def written_texts(arguments: argparse.Namespace) -> list[list[int]]:
    """Held-out openings and what the target writes after them."""
    requests = [
        Request(tokens=one.tokens, max_new_tokens=arguments.max_new_tokens, temperature=1, sample=i)
        for i, one in enumerate(held_out_openings(arguments))
    ]
    engine = Engine(
        load_target("demo/target"), batch_size=min(len(requests), ROWS), rounds_per_chunk=32
    )
    answers = zip(requests, engine.decode(requests), strict=True)
    return [[*request.tokens, *answer.tokens] for request, answer in answers]


# --- table and picture ---------------------------------------------------------------------------


def cosine_table(cosines: Mapping[int, Any]) -> str:
    """Means and their intervals; the paper's rows stand above ours."""
    rows: list[dict[str, object]] = []
    for n, values in PAPER.items():
        about: dict[str, object] = {
            "N": n,
            "reading": "the paper, Llama 3 8B",
            "layers": "not told",
        }
        rows.append(about | dict(zip(QUANTITIES, values, strict=True)))
    for reading, which in itertools.product(READINGS, AVERAGED):
        for n, found in cosines.items():
            row: dict[str, object] = {"N": n, "reading": reading, "layers": which}
            rows.append(row | {name: found[reading, which, name].text(3) for name in QUANTITIES})
    return table(rows)


def panels_of(cosines: Mapping[int, Any]) -> list[Panel]:
    """Cosines of approximated layers by N, a panel a reading; the paper's are crosses."""
    panels = []
    for reading in READINGS:
        curves = []
        for place, (name, colour) in enumerate(COLOURS.items()):
            key = (reading, "approximated", name)
            points = {float(n): found[key] for n, found in cosines.items()}
            curves.append(Curve(label=name, points=points, colour=colour))
            crosses = {"colour": colour, "marker": "x", "line": "none"}
            points = {float(n): Estimate(*[values[place]] * 3) for n, values in PAPER.items()}
            curves.append(Curve(label="the paper, Llama 3 8B", points=points, **crosses))
        panels.append(Panel(title=reading, xlabel="layers a group, N", curves=curves))
    return panels


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the table."""
    small, texts = load_target("demo/draft-deep"), written_texts(arguments)
    n_layers = small.model.config.n_layers
    cosines = {n: mean_cosines(small, texts, contiguous(n_layers, n)) for n in SIZES}
    panels = panels_of(cosines)
    picture = arguments.out / "easyspec_cosine.png"
    draw_curves(picture, panels, ylabel="cosine with the exact pass", width=4)
    return cosine_table(cosines)


if __name__ == "__main__":
    make_tables(make_parser(__doc__, new_tokens=96), measure)
