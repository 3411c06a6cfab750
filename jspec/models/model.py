"""Define a model as a static value and a pure `forward` over plain arrays.

In reading order: `Model` and how it is built, its parameters and cache, `forward`, `forward_text`
for training, and `embed` and `head` for drafters that share them.

Parameters are nested dicts and tuples of arrays, one array per weight per layer. The NNX
definition is merged with them while tracing; nothing of NNX reaches a call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jspec.errors import UserError
from jspec.models import modules
from jspec.models.blocks import seen_apart
from jspec.models.config import DecoderConfig
from jspec.models.decoder import Decoder, Layer, Rows, through_text
from jspec.ops.attention import AttentionShape, choose
from jspec.ops.linear import wide_dtype
from jspec.ops.masks import attention_mask
from jspec.ops.rope import rotations
from jspec.sharding import TARGET, mesh_axes
from jspec.state import Block, KVCache, Params, replace, state

HEAD_AXES = mesh_axes(TARGET, "kv_heads")
"""Mesh axes that the target's heads lie over."""

Groups = tuple[tuple[int, ...], ...]
"""Layers whose attention reads one hidden state, group by group; together all layers in order."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Say what is computed, without the numbers: two models of one config are equal.

    Attributes:
      config: the decoder.
      definition: its NNX graph definition, which follows from the config.
    """

    config: DecoderConfig
    definition: Any = dataclasses.field(compare=False, repr=False)

    def __repr__(self) -> str:
        return f"Model({self.config.summary})"


@state
class ModelOutput:
    """Hold what a forward leaves besides the cache.

    Attributes:
      logits: float32 (float64 in float64 models), of all new rows or of `logits_rows`.
      features: by name, of all new rows, in the model's type.
      new_rows: keys and values of the new rows, where they were not written: a cache of T slots.
    """

    logits: Float[Array, "B R V"]
    features: dict[str, Float[Array, "B T D"]]
    new_rows: KVCache | None = None


def build(config: DecoderConfig) -> Model:
    """Build the model of a config; this allocates nothing."""
    return Model(config, modules.define(lambda: Decoder(config)))


def abstract_params(model: Model, dtype) -> Params:
    """Return the shapes of the parameters: a pytree of `jax.ShapeDtypeStruct`."""
    return modules.shapes(lambda: Decoder(model.config), dtype)


def random_params(model: Model, *, key, dtype=jnp.float32, scale: float = 0.02) -> Params:
    """Draw normal weights of standard deviation `scale`, norms around 1; a key for each leaf."""
    return modules.random_like(abstract_params(model, dtype), key=key, scale=scale)


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype) -> KVCache:
    """Make a cache of zeros. Zeros matter: an unwritten slot is masked, but must be finite."""
    shape = (batch, config.n_kv_heads, slots, config.head_dim)
    layers = range(config.n_layers)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
    )


def forward(
    params: Params,
    model: Model,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    block: Block,
    *,
    capture: tuple[str, ...] = (),
    logits_rows: Int[Array, "B R"] | None = None,
    groups: Groups | None = None,
    may_defer: bool = False,
    head_axes: tuple[str, ...] = HEAD_AXES,
) -> tuple[ModelOutput, KVCache]:
    """Run one pass over T new rows, which are written to the cache where `block` says.

    Prefill, one-token decoding, chains, trees and bidirectional blocks are all this function.

    With `groups` it is an approximation of itself: all attention layers of a group read what enters
    the group, and its MLPs follow in order on the residual as it grows. Groups of one layer are
    the model. Source: Wu et al. 2025 (arXiv 2502.02493), Algorithms 1 and 2.

    Args:
      tokens: ids of the new rows; ids outside the vocabulary are clipped into it.
      block: where the rows go and what they see.
      capture: names of features to return: "enter.i", the residual entering layer i, or "final",
        the output of the final norm.
      logits_rows: which of the new rows get logits, in this order; all of them if None.
      groups: layers whose attention reads one hidden state; each alone if None.
      may_defer: where attention does not need them there, new rows are not written; they are
        `new_rows` of the output, for `ops.cache.write_path`.
      head_axes: mesh axes over which heads lie, where a mesh is set; the target's by default.
    """
    check_capture(model.config, capture)
    return ForwardSteps(head_axes=head_axes).run(
        merged(model, params),
        model.config,
        cache,
        tokens,
        block,
        groups or tuple((i,) for i in range(model.config.n_layers)),
        capture=capture,
        logits_rows=logits_rows,
        may_defer=may_defer,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardSteps:
    """Compute the steps of a forward pass: embedding, attention of a group of layers, MLP.

    This is one device by itself. A drafter that divides its passes over a mesh overrides the steps,
    and may bring a cache of its own kind (it needs a `capacity` and a `dtype`).

    Attributes:
      head_axes: mesh axes over which XLA divides heads.
    """

    head_axes: tuple[str, ...] = ()

    def embed(self, decoder: Decoder, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Compute what enters the first layer."""
        return decoder.embed(tokens)

    def mix(
        self,
        decoder: Decoder,
        group: tuple[int, ...],
        x: Float[Array, "B T D"],
        cache: Any,
        rows: Rows,
    ) -> tuple[list[Float[Array, "B T D"]], Any]:
        """Compute what every attention of a group makes of `x`, and the cache after it."""
        keys, values, added = list(cache.keys), list(cache.values), []
        for i in group:
            mixed, keys[i], values[i] = decoder.layers[i].mix(x, keys[i], values[i], rows)
            added.append(mixed)
        return added, KVCache(keys=tuple(keys), values=tuple(values))

    def feed(self, layer: Layer, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Compute what an MLP adds."""
        return layer.feed(x)

    def run(
        self,
        decoder: Decoder,
        config: DecoderConfig,
        cache: Any,
        tokens: Int[Array, "B T"],
        block: Block,
        groups: Groups,
        *,
        capture: tuple[str, ...] = (),
        logits_rows: Int[Array, "B R"] | None = None,
        may_defer: bool = False,
    ) -> tuple[ModelOutput, Any]:
        """Run `forward` with a merged decoder, made of these steps."""
        x = self.embed(decoder, tokens)
        rows = rows_of(
            config,
            block,
            cache,
            wide_dtype(x.dtype),
            may_defer=may_defer,
            head_axes=self.head_axes,
        )
        features, before = {}, cache
        for group in groups:
            added, cache = self.mix(decoder, group, x, cache, rows)
            for i, mixed in zip(group, added, strict=True):
                if f"enter.{i}" in capture:
                    features[f"enter.{i}"] = x
                x = x + mixed
                x = x + self.feed(decoder.layers[i], x)
        hidden = decoder.final_norm(x)
        if "final" in capture:
            features["final"] = hidden
        if logits_rows is not None:
            hidden = jnp.take_along_axis(hidden, logits_rows[:, :, None], axis=1)
        output = ModelOutput(logits=decoder.head(hidden), features=features)
        if rows.is_deferred:
            return replace(output, new_rows=cache), before
        return output, cache


def forward_text(
    params: Params,
    model: Model,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    capture: tuple[str, ...] = (),
    is_causal: bool | None = None,
    visible: Bool[Array, "B T T"] | None = None,
    n_causal: int = 0,
    remat: bool = False,
    rows_sharding: NamedSharding | None = None,
) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B T D"]]]:
    """Run one pass over whole packed texts, for training: no cache, and differentiable.

    The same function of a text as `forward`. Logits are `head(params, model, hidden)`, which the
    caller takes of the rows it needs.

    Args:
      segments: which text each row belongs to; rows see their own text only.
      positions: place of each row in its text.
      capture: names of features, as in `forward`.
      is_causal: the config's, if not given.
      visible: what each row sees of its text, in place of `is_causal`.
      n_causal: with `visible`, so many first rows see nothing after them, which is quicker.
      remat, rows_sharding: as in `decoder.through_text`.

    Returns:
      The output of the final norm, and the features.
    """
    config = model.config
    check_capture(config, capture)
    decoder = merged(model, params)
    causal = config.is_causal if is_causal is None else is_causal
    x, features = through_text(
        decoder.layers,
        decoder.embed(tokens),
        config,
        segments,
        positions,
        capture=capture,
        remat=remat,
        rows_sharding=rows_sharding,
        is_causal=causal and visible is None,
        visible=visible,
        n_causal=n_causal,
    )
    hidden = decoder.final_norm(x)
    if "final" in capture:
        features["final"] = hidden
    return hidden, features


def embed(params: Params, model: Model, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embed tokens, for drafters that share the target's embedding."""
    return merged(model, params).embed(tokens)


def head(params: Params, model: Model, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Compute logits of hidden rows after a final norm, for drafters that share the head."""
    return merged(model, params).head(hidden)


def check_capture(config: DecoderConfig, capture: tuple[str, ...]) -> None:
    """Refuse names of features that this model does not have."""
    known = {f"enter.{i}" for i in range(config.n_layers)} | {"final"}
    unknown = sorted(set(capture) - known)
    if unknown:
        raise UserError(
            f"unknown features {', '.join(unknown)}: a model of {config.n_layers} layers has "
            f'"enter.0" to "enter.{config.n_layers - 1}" and "final"'
        )


def merged(model: Model, params: Params) -> Decoder:
    """Merge the modules with their arrays; while tracing."""
    return modules.merge(model.definition, params)


def rows_of(
    config: DecoderConfig,
    block: Block,
    cache: Any,
    dtype,
    *,
    may_defer: bool = False,
    head_axes: tuple[str, ...] = (),
) -> Rows:
    """Compute what every layer needs to know of the rows of a block.

    Args:
      cache: of any kind that has a `capacity` and a `dtype`.
      dtype: of rotations.
      may_defer, head_axes: as in `forward`.
    """
    frequencies, factor = config.rope.frequencies(config.head_dim)
    cos, sin = rotations(block.query_positions, frequencies, factor, dtype)
    slots, windows = cache.capacity, list(dict.fromkeys(config.windows))
    shape = AttentionShape(
        tokens=block.visible.shape[1],
        head_dim=config.head_dim,
        dtype=cache.dtype,
        has_window=any(window is not None and window < slots for window in windows),
    )
    if choose(shape) is None:
        seen = {
            window: attention_mask(block.prefix, block.visible, block.positions, slots, window)
            for window in windows
        }
        return Rows(block=block, cos=cos, sin=sin, seen=seen)
    seen = {
        window: seen_apart(block, window, has_window=shape.has_window, head_axes=head_axes)
        for window in windows
    }
    return Rows(block=block, cos=cos, sin=sin, seen=seen, is_deferred=may_defer)
