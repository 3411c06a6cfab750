"""What one device does of a pass that several share: inside `shard_map`, its collectives written.

In reading order: `LocalCache`, `Share`, and `best_of_all`, the best of scores that are split.

Source: Wu et al. 2025 (arXiv 2502.02493), section 3. See `layer_parallel.py` for the
plans, and who calls this.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jspec.models.decoder import Decoder, Layer, Rows
from jspec.models.layer_groups import Group, Groups
from jspec.models.model import Model, Parts, merged
from jspec.models.weights import leaf_name
from jspec.ops import cache as cache_ops
from jspec.state import KVCache, Params

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LocalCache:
    """Keys and values that a device has.

    Attributes:
      every: of all layers.
      own: an array for every group whose layers run side by side: of the one that runs here.
    """

    every: KVCache
    own: KVCache | None = None

    @property
    def capacity(self) -> int:
        return self.every.capacity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share(Parts):
    """One device of a mesh.

    Attributes:
      model: of all devices.
      params: this device's part of the weights, from `share_of_biases`.
      heads, mlp, vocab: mesh axes over which these dimensions are split.
      layers: the axis along which layers of one group run side by side.
      multis: groups of such layers.
      own: the attention weights of the layer that runs here, for each of them.
    """

    model: Model
    params: Params
    heads: Axes
    mlp: Axes
    vocab: Axes
    layers: str | None = None
    multis: Groups = ()
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

    def mix(self, decoder: Decoder, group: Group, x, cache: LocalCache, rows: Rows):
        if group in self.multis:
            return self._side_by_side(group, x, cache, rows)
        added, every = super().mix(decoder, group, x, cache.every, rows)
        if self.heads:
            added = list(lax.psum(jnp.stack(added), self.heads))
        return added, LocalCache(every=every, own=cache.own)

    def feed(self, layer: Layer, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        fed = layer.feed(x)
        return lax.psum(fed, self.mlp) if self.mlp else fed

    def _side_by_side(self, group: Group, x, cache: LocalCache, rows: Rows):
        """This device runs one layer of the group, and gathers what all of them make."""
        assert self.layers is not None and cache.own is not None
        place = self.multis.index(group)
        keys, values = cache.own.keys[place], cache.own.values[place]
        layer = self._own_layer(group, place)
        mixed, keys, values = layer.mix(x, keys, values, self._own_rows(group, rows))
        if self.heads:
            mixed = lax.psum(mixed, self.heads)
        added = lax.all_gather(mixed, self.layers)
        own = KVCache(
            keys=_with(cache.own.keys, place, keys), values=_with(cache.own.values, place, values)
        )
        return [added[j] for j in range(len(group))], LocalCache(every=cache.every, own=own)

    def _own_layer(self, group: Group, place: int) -> Layer:
        """The group's first layer with the attention weights that are this device's."""
        first, layers = group[0], self.params["layers"]
        changed = _with(layers, first, layers[first] | self.own[place])
        return merged(self.model, self.params | {"layers": changed}).layers[first]

    def _own_rows(self, group: Group, rows: Rows) -> Rows:
        """Rows whose mask for the group's first layer is that of the layer that runs here."""
        windows = [self.model.config.windows[i] for i in group]
        if len(set(windows)) == 1:
            return rows
        masks = jnp.stack([rows.masks[window] for window in windows])
        chosen = lax.dynamic_index_in_dim(masks, self._mine(group), keepdims=False)
        return dataclasses.replace(rows, masks=rows.masks | {windows[0]: chosen})

    def _mine(self, group: Group) -> Int[Array, ""]:
        """The place in the group of the layer that runs here; spare devices repeat the last."""
        assert self.layers is not None
        return jnp.minimum(lax.axis_index(self.layers), len(group) - 1)

    def copy_own(self, cache: LocalCache, start: Int[Array, " B"], count: int) -> LocalCache:
        """After an exact pass: the new rows of the layers that run here, from those of all."""
        if cache.own is None:
            return cache

        def copied(own, every):
            for place, group in enumerate(self.multis):
                rows = jnp.stack([cache_ops.read_window(every[i], start, count) for i in group])
                mine = lax.dynamic_index_in_dim(rows, self._mine(group), keepdims=False)
                new = lax.optimization_barrier(mine)
                own = _with(own, place, cache_ops.write_rows(own[place], new, start))
            return own

        keys = copied(cache.own.keys, cache.every.keys)
        values = copied(cache.own.values, cache.every.values)
        return LocalCache(every=cache.every, own=KVCache(keys=keys, values=values))


def share_of_biases(params: Params, heads: Axes, mlp: Axes) -> Params:
    """Biases of sums over devices: each adds its share."""
    over = {"o_bias": heads, "down_bias": mlp}

    def one(path, leaf):
        axes = over.get(leaf_name(path), ())
        return leaf / lax.axis_size(axes) if axes else leaf

    return jax.tree.map_with_path(one, params)


def best_of_all(
    local: Float[Array, "*B V"], k: int, axes: Axes, beside: Float[Array, "*B X"] | None = None
) -> tuple[Float[Array, "*B k"], Int[Array, "*B k"], Float[Array, "N *B X"]]:
    """The k best of scores that lie over devices, with their ids, in one collective.

    Every device gathers the best of all, of ties the lowest ids. One collective, and not one each,
    also because devices that are simulated may wait for one another where several that do not
    depend on each other are under way.

    Args:
      local: this device's scores.
      axes: of the mesh, over which the last dimension is split.
      beside: more numbers of each row, which are gathered with them.

    Returns:
      Scores, ids, and what was beside them on each of the N devices.
    """
    count = min(k, local.shape[-1])
    values, ids = lax.top_k(local, count)
    ids += (lax.axis_index(axes) * local.shape[-1]).astype(ids.dtype)
    # Ids are exact in any float of 24 bits: there are fewer tokens.
    parts = [values, ids.astype(values.dtype)] + ([] if beside is None else [beside])
    found = lax.all_gather(jnp.concatenate(parts, axis=-1), axes)
    values, ids = (
        jnp.moveaxis(part, 0, -2).reshape(*local.shape[:-1], -1)
        for part in (found[..., :count], found[..., count : 2 * count])
    )
    values, place = lax.top_k(values, k)
    ids = jnp.take_along_axis(ids, place, axis=-1).astype(jnp.int32)
    return values, ids, found[..., 2 * count :]


def split_top_k(
    scores: Float[Array, "B T V"], k: int, mesh: Mesh, axes: Axes
) -> tuple[Float[Array, "B T k"], Int[Array, "B T k"]]:
    """`lax.top_k` of scores whose last dimension lies over mesh axes, none of it gathered whole."""
    rows = "data" if scores.shape[0] % mesh.shape["data"] == 0 else None
    whole = PartitionSpec(rows, None, None)
    return jax.shard_map(
        lambda local: best_of_all(local, k, axes)[:2],
        mesh=mesh,
        in_specs=PartitionSpec(rows, None, axes),
        out_specs=(whole, whole),
        check_vma=False,
    )(scores)


def _with(items: tuple, place: int, item) -> tuple:
    return (*items[:place], item, *items[place + 1 :])
