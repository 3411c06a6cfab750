"""Draft a chain, or a tree of likely continuations, with a smaller model of the same tokenizer.

It is EasySpec with every layer in a group of its own, so that all of its passes are exact.

Source: Leviathan et al. 2023, Chen et al. 2023; the trees, EasySpec (Wu et al. 2025) section 4.2.
"""

from __future__ import annotations

import dataclasses

from jspec.checkpoints.beside import checkpoint_beside, load_beside
from jspec.checkpoints.target import Target
from jspec.drafters.base import Method
from jspec.drafters.draft_vocabulary import reduce_model
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.growth import Grower, GrowthOptions
from jspec.models.model import Model
from jspec.state import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftModelOptions(GrowthOptions):
    """Draft a chain of four tokens, if nothing else is said."""

    depth: int = 4


def draft_model(model: Model, **growth) -> EasySpec:
    """Make a drafter of a decoder.

    Args:
      growth: of chain or tree, see `Grower`. Every level is a pass.

    Raises:
      ValueError: a depth, width or scale that makes no tree.
    """
    decoder = LayerParallelDecoder(model)
    return EasySpec(decoder=decoder, grower=Grower(**growth), calibration=Calibration.NEVER)


def load(path, target: Target, options: DraftModelOptions) -> tuple[EasySpec, Params]:
    """Load a Hugging Face checkpoint in the target's dtype and on its mesh, or its shapes.

    Raises:
      UserError: another tokenizer than the target's.
    """
    checkpoint = checkpoint_beside(target, path)
    small = load_beside(target, checkpoint, must_be_causal=True)
    model, params, ids = reduce_model(
        small.model, small.params, checkpoint, target, options, width=options.width
    )
    growth = dataclasses.asdict(options.grower(target.vocab_size))
    return draft_model(model, **growth), params | ids


METHOD = Method(
    options=DraftModelOptions,
    load=load,
    needs="the small model's checkpoint: give its path (drafter_path), a directory or a hub id",
)
