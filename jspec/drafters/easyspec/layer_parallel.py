"""Run a decoder over a mesh, its layers in groups whose attention runs side by side.

In reading order: the plans (`Parallelism`), and `LayerParallelDecoder`, which a drafter calls, and
which places its weights. What one device does, and its cache, are in `device_steps.py`.

A pass is one `shard_map` over all axes of the mesh, so that its collectives are those written here:

| plan | attention of a group | an MLP |
|---|---|---|
| A | an all-gather over `layer`; before it a sum over `tensor` | a sum over `tensor` |
| A+ | as A | a sum over both axes |
| B | one sum over both axes, of all its layers together | a sum over both axes |
| B- | as B | none |
| B-tensor | one sum over `tensor`, for heads that both axes do not divide | a sum over both axes |
| C | none | none |

A group of layers 1 and 2, which h enters, on two devices:

    plan A  device 0   attention 1 of h   | gather |  h + a1, MLP 1, + a2, MLP 2
            device 1   attention 2 of h   |  both  |  the same
    plan B  device 0   heads 0 of 1 and 2 | sum of |  h + a1, half of MLP 1, sum, + a2, ...
            device 1   heads 1 of 1 and 2 |  both  |  the other halves

A sum over one device is none. The vocabulary is split over both axes, which costs a sum for the
embedding.

Source: Wu et al. 2025 (arXiv 2502.02493), section 3; plan A with one device along
`tensor` is its placement. Differs: all devices work; the head is split; the other plans.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jspec.drafters.easyspec.device_steps import DeviceSteps, LayerParallelCache, share_of_biases
from jspec.drafters.easyspec.layer_groups import check_groups, singles, split
from jspec.models.model import Groups, Model, empty_cache, forward, merged
from jspec.models.weights import AXES, leaf_name
from jspec.ops import cache as cache_ops
from jspec.ops.top_k import Axes, top_k_and_total, top_k_of_parts
from jspec.sharding import HEAD_SPLIT, LAYER_PARALLEL, TARGET, Table, sharding, split_axes
from jspec.state import Block, KVCache, Params, ShardedArrays, replace

_OWN = "own"
"""Where the weights are that only one device of a `layer` axis has."""


class Parallelism(enum.Enum):
    """Name the ways to divide a pass over a mesh.

    Attributes:
      table: where the weights' logical axes go.
      layers: the mesh axis along which the layers of a group run side by side, if any.
    """

    A = ("A", LAYER_PARALLEL, "layer")
    A_PLUS = ("A+", {**LAYER_PARALLEL, "mlp": TARGET["mlp"]}, "layer")
    B = ("B", TARGET, None)
    B_MINUS = ("B-", {**TARGET, "mlp": None}, None)
    B_TENSOR = ("B-tensor", {**LAYER_PARALLEL, "mlp": TARGET["mlp"]}, None)
    C = ("C", HEAD_SPLIT, None)

    table: Table
    layers: str | None

    def __new__(cls, value: str, table: Table, layers: str | None):
        plan = object.__new__(cls)
        plan._value_, plan.table, plan.layers = value, table, layers
        return plan


@dataclasses.dataclass(frozen=True)
class LayerParallelDecoder:
    """Run a decoder's passes exactly, or approximately with its layers in groups.

    Static. On one device, or without a mesh, all plans are plain calls of `forward`.

    Attributes:
      model: its key/value heads fit the mesh.
      groups: of its layers; each alone if not given. Those of more layers than there are devices to
        run them side by side are split.
      plan: of the mesh.
      mesh: that the weights are on.
    """

    model: Model
    groups: Groups = ()
    plan: Parallelism = Parallelism.C
    mesh: Mesh | None = None

    def __post_init__(self):
        layers = self.model.config.n_layers
        groups = check_groups(self.groups or singles(layers), layers)
        groups = split(groups, self._side_by_side or layers)
        object.__setattr__(self, "groups", groups)

    @property
    def is_alone(self) -> bool:
        """Tell whether one device computes everything."""
        return self.mesh is None or self.mesh.size == 1

    def logits_axes(self, count: int) -> Axes:
        """Name the mesh axes over which so many logits of a row lie."""
        return self._axes_of("vocab", count)

    def forward(
        self,
        params: Params,
        cache: LayerParallelCache,
        tokens: Int[Array, "B T"],
        block: Block,
        *,
        is_exact: bool = False,
        logits_rows: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R U"], LayerParallelCache]:
        """Run one pass: logits, of `logits_rows` or all rows, and the cache.

        All attention of a group reads what enters the group; an exact pass is the decoder itself,
        every layer a group of its own.
        """
        groups = singles(self.model.config.n_layers) if is_exact else self.groups
        if self.is_alone:
            output, every = forward(
                params,
                self.model,
                cache.every.arrays,
                tokens,
                block,
                logits_rows=logits_rows,
                groups=groups,
            )
            return output.logits, cache.updated(every=every)
        rows = self._rows(tokens.shape[0])
        where = self._cache_specs(cache)
        weights = jax.tree.map(lambda found: found.spec, self.shardings(params))
        own_head = params.get("head_weight")
        n_logits = self.model.config.vocab_size if own_head is None else own_head.shape[1]
        return self._over_mesh(
            functools.partial(self._one_device, groups),
            (weights, where, rows, rows, rows),
            (PartitionSpec(*rows, None, self.logits_axes(n_logits) or None), where),
        )(params, cache, tokens, block, logits_rows)

    def empty_cache(self, rows: int, slots: int, dtype) -> LayerParallelCache:
        """Make a cache of zeros."""
        whole = empty_cache(self.model.config, rows, slots, dtype)
        every = ShardedArrays(arrays=whole, axes=(self._heads or None,))
        if not self._parallel_groups:
            return LayerParallelCache(every=every)
        _, heads, _, width = whole.keys[0].shape
        shape = (rows, self._side_by_side * heads, slots, width)
        own = tuple(jnp.zeros(shape, dtype) for _ in self._parallel_groups)
        assert self.plan.layers is not None
        axes = ((self.plan.layers, *self._heads),)
        return LayerParallelCache(
            every=every, own=ShardedArrays(arrays=KVCache(keys=own, values=own), axes=axes)
        )

    def compact(
        self,
        cache: LayerParallelCache,
        start: Int[Array, " B"],
        path: Int[Array, "B W"],
        window: int,
    ) -> LayerParallelCache:
        """Make an accepted path contiguous; see `ops.cache.compact`."""

        def kept(cache: LayerParallelCache, start, path) -> LayerParallelCache:
            return jax.tree.map(lambda a: cache_ops.compact(a, start, path, window), cache)

        if self.is_alone:
            return kept(cache, start, path)
        where, rows = self._cache_specs(cache), self._rows(start.shape[0])
        return self._over_mesh(kept, (where, rows, rows), where)(cache, start, path)

    def top_k(
        self, scores: Float[Array, "R U"], k: int, score_temperature: float
    ) -> tuple[Float[Array, "R k"], Int[Array, "R k"], Float[Array, "R 1"]]:
        """Take `top_k_and_total` of scores that lie over the vocabulary, in one collective."""
        axes = self.logits_axes(scores.shape[-1])
        if not axes or self.mesh is None:
            return top_k_and_total(scores, k, score_temperature)

        def of_part(local):
            total = jax.nn.logsumexp(local / score_temperature, axis=-1, keepdims=True)
            values, ids, totals = top_k_of_parts(local, k, axes, total)
            return values, ids, jax.nn.logsumexp(totals, axis=0)

        rows = self._rows(scores.shape[0])
        given = PartitionSpec(*rows, axes)
        return self._over_mesh(of_part, (given,), (rows, rows, rows))(scores)

    def _one_device(
        self, groups: Groups, params, cache: LayerParallelCache, tokens, block: Block, logits_rows
    ):
        """Run the pass of one device, whose parts of arrays these are."""
        mlp, heads = self._axes_of("mlp", self.model.config.mlp_width), self._heads
        params = share_of_biases(params, heads, mlp)
        own = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), params.pop(_OWN, ()))
        steps = DeviceSteps(
            model=self.model,
            params=params,
            heads=heads,
            mlp=mlp,
            vocab=self._axes_of("vocab", self.model.config.vocab_size),
            layers=self.plan.layers,
            parallel_groups=self._parallel_groups,
            own=own,
        )
        decoder, config = merged(self.model, params), self.model.config
        output, cache = steps.run(
            decoder, config, cache, tokens, block, groups, logits_rows=logits_rows
        )
        if not any(group in self._parallel_groups for group in groups):
            cache = steps.copy_own(cache, block.write_start, tokens.shape[1])
        return output.logits, cache

    def _over_mesh(self, body, given, found):
        return jax.shard_map(body, mesh=self.mesh, in_specs=given, out_specs=found, check_vma=False)

    def _rows(self, count: int) -> PartitionSpec:
        assert self.mesh is not None
        return PartitionSpec("data" if count % self.mesh.shape["data"] == 0 else None)

    def _cache_specs(self, cache: LayerParallelCache) -> LayerParallelCache:
        (over_rows,) = self._rows(cache.every.arrays.keys[0].shape[0])

        def spec(sharded: ShardedArrays) -> ShardedArrays:
            where = PartitionSpec(over_rows, *sharded.axes)
            return replace(sharded, arrays=jax.tree.map(lambda _: where, sharded.arrays))

        return jax.tree.map(spec, cache, is_leaf=lambda node: isinstance(node, ShardedArrays))

    def _axes_of(self, axis: str, size: int) -> Axes:
        """Name the axes that split a dimension of weights; none where they do not divide it."""
        return () if self.mesh is None else split_axes(self.mesh, self.plan.table, axis, size)

    @property
    def _heads(self) -> Axes:
        return self._axes_of("heads", self.model.config.n_heads)

    @property
    def _side_by_side(self) -> int:
        """Count the devices that run layers of one group; 0 for a plan without."""
        if self.is_alone or self.plan.layers is None:
            return 0
        return self.mesh.shape[self.plan.layers]  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def _parallel_groups(self) -> Groups:
        """List the groups whose layers run side by side."""
        if not self._side_by_side:
            return ()
        return tuple(group for group in self.groups if len(group) > 1)

    def shardings(self, params: Params) -> Params:
        """Find a `NamedSharding` for every weight, or shape of one."""
        mesh, table = self.mesh, self.plan.table
        assert mesh is not None

        def one(path, leaf) -> NamedSharding:
            axes = AXES[leaf_name(path)]
            is_own = path[0].key == _OWN
            shape = leaf.shape[1:] if is_own else leaf.shape
            found = sharding(mesh, table, axes, shape)
            if not is_own:
                return found
            return NamedSharding(mesh, PartitionSpec(self.plan.layers, *found.spec))

        return jax.tree.map_with_path(one, params)

    def place(self, params: Params) -> Params:
        """Put weights (or their shapes) where passes want them.

        Where layers run side by side, every device also gets what it runs as an array of its own.
        Source: section 5.2; weights that a device picked from a whole stack would be copied.
        """
        if self.is_alone:
            return params
        is_abstract = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
        if not is_abstract:
            params = jax.tree.map(_put, params, self.shardings(params))
        if not self._parallel_groups:
            return params

        def of_groups(layers) -> tuple[Params, ...]:
            return tuple(
                self._stacked([layers[i] for i in group]) for group in self._parallel_groups
            )

        shapes = jax.eval_shape(of_groups, params["layers"])
        where = self.shardings({_OWN: shapes})[_OWN]
        if not is_abstract:
            return params | {_OWN: jax.jit(of_groups, out_shardings=where)(params["layers"])}

        def shape_at(leaf, sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return params | {_OWN: jax.tree.map(shape_at, shapes, where)}

    def _stacked(self, layers: list[Params]) -> Params:
        """Stack the attention weights of a group's layers; spare devices have the last again."""
        layers = layers + layers[-1:] * (self._side_by_side - len(layers))
        mixing = [{key: layer[key] for key in ("attention_norm", "attention")} for layer in layers]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixing)


def _put(array: jax.Array, where: NamedSharding) -> jax.Array:
    """Move an array where it is wanted; one that is there stays the same array."""
    is_there = array.sharding.is_equivalent_to(where, array.ndim)
    return array if is_there else jax.device_put(array, where)
