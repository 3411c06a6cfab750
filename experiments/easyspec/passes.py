"""Passes that the drafter does not make: whole layers at once, and layers without attention."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.models.model import ForwardSteps, merged
from jspec.state import replace


class NoAttention(ForwardSteps):
    """Leaves attention out."""

    def mix(self, decoder, group, x, cache, rows):
        return [jnp.zeros_like(x) for _ in group], cache


class WholeLayers(ForwardSteps):
    """Runs the layers of a group at once as they are, their MLPs included.

    An MLP too reads what entered the group, and what its own layer's attention made of it.

    Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Table 5, which tries and leaves it.
    """

    def mix(self, decoder, group, x, cache, rows):
        added, cache = super().mix(decoder, group, x, cache, rows)
        self._read = [x + one for one in added]
        return added, cache

    def feed(self, layer, x):
        return super().feed(layer, self._read.pop(0))


@dataclasses.dataclass(frozen=True)
class WholeLayerDecoder(LayerParallelDecoder):
    """A decoder on one device that runs whole layers at once."""

    def forward(self, params, cache, tokens, block, *, is_exact=False, logits_rows=None):
        if is_exact:
            return super().forward(
                params, cache, tokens, block, is_exact=True, logits_rows=logits_rows
            )
        output, every = WholeLayers().run(
            merged(self.model, params),
            self.model.config,
            cache.every.arrays,
            tokens,
            block,
            self.groups,
            logits_rows=logits_rows,
        )
        return output.logits, replace(cache, every=replace(cache.every, arrays=every))


def with_whole_layers(loaded: LoadedDrafter) -> LoadedDrafter:
    """The same drafter on one device, whose groups are of whole layers."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec) and drafter.decoder.is_alone
    decoder = WholeLayerDecoder(drafter.decoder.model, drafter.decoder.groups)
    return dataclasses.replace(loaded, drafter=dataclasses.replace(drafter, decoder=decoder))
