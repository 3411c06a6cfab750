"""Run one device's share of a layer-parallel pass, inside `shard_map`, with its collectives.

In reading order: `LayerParallelCache`, what passes keep, and `DeviceSteps`.

Source: Wu et al. 2025 (arXiv 2502.02493), section 3. See `layer_parallel.py` for the
plans, and who calls this.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec.models.decoder import Decoder, Layer, Rows
from jspec.models.model import ForwardSteps, Groups, Model, merged
from jspec.models.weights import leaf_name
from jspec.ops import cache as cache_ops
from jspec.ops.top_k import Axes
from jspec.state import KVCache, Params, ShardedArrays, replace, state


@state
class LayerParallelCache:
    """Hold the keys and values of a drafter that is itself a decoder.

    Attributes:
      every: of all layers, as exact passes write them; of layers that run side by side, nothing
        else is here.
      own: of these, an array a group: the heads of the layer that the first device of `layer`
        runs, of the second, and so on; as all passes write them. None where no layers run so.
    """

    every: ShardedArrays
    own: ShardedArrays | None = None

    @property
    def capacity(self) -> int:
        return self.every.arrays.capacity

    @property
    def dtype(self) -> jnp.dtype:
        return self.every.arrays.dtype

    def updated(self, **arrays: KVCache) -> LayerParallelCache:
        """Put other arrays into `every` or `own`."""
        changed = {name: replace(getattr(self, name), arrays=new) for name, new in arrays.items()}
        return replace(self, **changed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSteps(ForwardSteps):
    """Take the steps of a forward pass as one device of a mesh.

    Attributes:
      model: of all devices.
      params: this device's part of the weights, from `share_of_biases`.
      heads, mlp, vocab: mesh axes over which these dimensions are split.
      layers: the axis along which layers of one group run side by side.
      parallel_groups: groups of such layers.
      own: the attention weights of the layer that runs here, for each of them.
    """

    model: Model
    params: Params
    heads: Axes
    mlp: Axes
    vocab: Axes
    layers: str | None = None
    parallel_groups: Groups = ()
    own: tuple[Params, ...] = ()

    def embed(self, decoder: Decoder, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        if not self.vocab:
            return decoder.embed(tokens)
        size = decoder.embedding.shape[0]
        known = jnp.clip(tokens, 0, self.model.config.vocab_size - 1)
        place = known - lax.axis_index(self.vocab).astype(tokens.dtype) * size
        is_here = (place >= 0) & (place < size)
        found = decoder.embed(jnp.clip(place, 0, size - 1))
        return lax.psum(jnp.where(is_here[..., None], found, jnp.zeros_like(found)), self.vocab)

    def mix(
        self, decoder: Decoder, group: tuple[int, ...], x, cache: LayerParallelCache, rows: Rows
    ):
        if group in self.parallel_groups:
            return self._side_by_side(group, x, cache, rows)
        added, every = super().mix(decoder, group, x, cache.every.arrays, rows)
        if self.heads:
            added = list(lax.psum(jnp.stack(added), self.heads))
        return added, cache.updated(every=every)

    def feed(self, layer: Layer, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        fed = layer.feed(x)
        return lax.psum(fed, self.mlp) if self.mlp else fed

    def _side_by_side(self, group: tuple[int, ...], x, cache: LayerParallelCache, rows: Rows):
        """Run this device's layer of the group, and gather what all of them make."""
        assert self.layers is not None and cache.own is not None
        place = self.parallel_groups.index(group)
        held = cache.own.arrays
        layer = self._own_layer(group, place)
        mixed, keys, values = layer.mix(
            x, held.keys[place], held.values[place], self._own_rows(group, rows)
        )
        if self.heads:
            mixed = lax.psum(mixed, self.heads)
        added = lax.all_gather(mixed, self.layers)
        own = KVCache(keys=_with(held.keys, place, keys), values=_with(held.values, place, values))
        return [added[j] for j in range(len(group))], cache.updated(own=own)

    def _own_layer(self, group: tuple[int, ...], place: int) -> Layer:
        """Make the group's first layer with the attention weights that are this device's."""
        first, layers = group[0], self.params["layers"]
        changed = _with(layers, first, layers[first] | self.own[place])
        return merged(self.model, self.params | {"layers": changed}).layers[first]

    def _own_rows(self, group: tuple[int, ...], rows: Rows) -> Rows:
        """Let the group's first layer see what the layer that runs here sees."""
        windows = [self.model.config.windows[i] for i in group]
        if len(set(windows)) == 1:
            return rows
        mine = self._mine(group)

        def chosen(*seen):
            return lax.dynamic_index_in_dim(jnp.stack(seen), mine, keepdims=False)

        here = jax.tree.map(chosen, *(rows.seen[window] for window in windows))
        return dataclasses.replace(rows, seen={**rows.seen, windows[0]: here})

    def _mine(self, group: tuple[int, ...]) -> Int[Array, ""]:
        """Find the place of the layer that runs here; spare devices repeat the last."""
        assert self.layers is not None
        return jnp.minimum(lax.axis_index(self.layers), len(group) - 1)

    def copy_own(
        self, cache: LayerParallelCache, start: Int[Array, " B"], count: int
    ) -> LayerParallelCache:
        """Copy the new rows of the layers that run here from those of all, after an exact pass."""
        if cache.own is None:
            return cache

        def copied(own, every):
            for place, group in enumerate(self.parallel_groups):
                rows = jnp.stack([cache_ops.read_window(every[i], start, count) for i in group])
                mine = lax.dynamic_index_in_dim(rows, self._mine(group), keepdims=False)
                new = lax.optimization_barrier(mine)
                own = _with(own, place, cache_ops.write_rows(own[place], new, start))
            return own

        own, every = cache.own.arrays, cache.every.arrays
        keys, values = copied(own.keys, every.keys), copied(own.values, every.values)
        return cache.updated(own=KVCache(keys=keys, values=values))


def share_of_biases(params: Params, heads: Axes, mlp: Axes) -> Params:
    """Divide the biases of sums over devices: each adds its share."""
    over = {"o_bias": heads, "down_bias": mlp}

    def one(path, leaf):
        axes = over.get(leaf_name(path), ())
        return leaf / lax.axis_size(axes) if axes else leaf

    return jax.tree.map_with_path(one, params)


def _with(items: tuple, place: int, item) -> tuple:
    return (*items[:place], item, *items[place + 1 :])
