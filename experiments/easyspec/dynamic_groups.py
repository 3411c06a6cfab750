"""EasySpec whose groups are an array: one compiled program for every grouping of the same layers.

What is computed is what `LayerParallelDecoder` computes. Compiling a round takes longer than
decoding with it, so that an ablation over groupings is several times as quick this way. Whole
layers may run at once as well, their MLPs included, which the paper tried and left (Table 5).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_groups import Groups, singles
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.models.model import ForwardSteps, merged
from jspec.state import replace


class _Reading(ForwardSteps):
    """Attention reads what entered the last layer so far that opens a group."""

    def __init__(self, opens: Bool[Array, " L"]):
        self._opens = opens
        self._entered: Float[Array, "B T D"] | None = None

    def mix(self, decoder, group, x, cache, rows):
        (layer,) = group
        before = x if self._entered is None else self._entered
        entered = self._entered = jnp.where(self._opens[layer], x, before)
        return super().mix(decoder, group, entered, cache, rows)


class _Whole(_Reading):
    """An MLP too reads what entered the group, and what its own layer's attention made of it."""

    def mix(self, decoder, group, x, cache, rows):
        added, cache = super().mix(decoder, group, x, cache, rows)
        assert self._entered is not None
        self._read = self._entered + added[0]
        return added, cache

    def feed(self, layer, x):
        return super().feed(layer, self._read)


@dataclasses.dataclass(frozen=True)
class AnyGroups(LayerParallelDecoder):
    """A decoder on one device whose weights come with the layers that open a group.

    Attributes:
      whole: the layers of a group run at once as they are, and not their attention only.
    """

    whole: bool = False

    def forward(self, params, cache, tokens, block, *, is_exact=False, logits_rows=None):
        weights, opens = params
        if is_exact:
            return super().forward(
                weights, cache, tokens, block, is_exact=True, logits_rows=logits_rows
            )
        output, every = (_Whole if self.whole else _Reading)(opens).run(
            merged(self.model, weights),
            self.model.config,
            cache.every.arrays,
            tokens,
            block,
            singles(self.model.config.n_layers),
            logits_rows=logits_rows,
        )
        return output.logits, replace(cache, every=replace(cache.every, arrays=every))


def any_groups(loaded: LoadedDrafter, groups: Groups, *, whole: bool = False) -> LoadedDrafter:
    """The same drafter on one device, its groups an array beside its weights."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec) and drafter.decoder.is_alone
    opens = np.zeros((drafter.decoder.model.config.n_layers,), bool)
    opens[[group[0] for group in groups]] = True
    decoder = AnyGroups(drafter.decoder.model, whole=whole)
    return dataclasses.replace(
        loaded,
        drafter=dataclasses.replace(drafter, decoder=decoder),
        params=(loaded.params, jnp.asarray(opens)),
    )
