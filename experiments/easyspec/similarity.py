"""How near what a grouped pass computes is to what an exact one does: cosines, layer by layer.

In two readings of the same question. *Local*: every layer reads what enters its group in an exact
pass. *Propagated*: a whole pass in groups, so that groups read what groups before them made.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Table 4, which does not say which it is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jspec.drafters.easyspec.layer_groups import Groups, singles
from jspec.models.blocks import causal_block
from jspec.models.model import ForwardSteps, Model, empty_cache, merged
from jspec.ops.norms import rms_norm
from jspec.state import Params

QUANTITIES = ("h", "q", "k", "v", "attention")
READINGS = ("local", "propagated")

Seen = dict[str, Float[Array, "L B T X"]]
"""By quantity: what enters a layer's attention, its projections, and what it adds."""


class _Watching(ForwardSteps):
    """Keeps what attention reads and makes.

    Args:
      inputs: what every layer reads, in place of what it is given.
    """

    def __init__(self, inputs: Float[Array, "L B T D"] | None = None):
        self._inputs = inputs
        self._seen: dict[str, list[jax.Array]] = {name: [] for name in QUANTITIES}

    def mix(self, decoder, group, x, cache, rows):
        added = []
        for i in group:
            layer = decoder.layers[i]
            read = x if self._inputs is None else self._inputs[i]
            (mixed,), cache = super().mix(decoder, (i,), read, cache, rows)
            normed = rms_norm(read, layer.attention_norm[...], layer.eps)
            projections = layer.attention._projections(normed, rows.cos, rows.sin)
            for name, value in zip(QUANTITIES, (read, *projections, mixed), strict=True):
                self._seen[name].append(value.reshape(*value.shape[:2], -1))
            added.append(mixed)
        return added, cache

    @property
    def seen(self) -> Seen:
        return {name: jnp.stack(values) for name, values in self._seen.items()}


def _watch(params: Params, model: Model, tokens, groups: Groups, inputs=None) -> Seen:
    rows, width = tokens.shape
    cache = empty_cache(model.config, rows, width, jax.tree.leaves(params)[0].dtype)
    watching = _Watching(inputs)
    block = causal_block(jnp.zeros((rows,), jnp.int32), width)
    decoder = merged(model, params)
    watching.run(decoder, model.config, cache, tokens, block, groups)
    return watching.seen


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
    def length(x):
        return jnp.sqrt(jnp.sum(x * x, axis=-1))

    return jnp.sum(one * other, axis=-1) / jnp.maximum(length(one) * length(other), 1e-30)


def approximated(groups: Groups) -> list[int]:
    """Layers that read something else than in the model: those that open no group."""
    return [layer for group in groups for layer in group[1:]]


def grouped(groups: Groups) -> list[int]:
    """Layers of groups of several, those that open one included."""
    return [layer for group in groups if len(group) > 1 for layer in group]
