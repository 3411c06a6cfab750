"""A smaller model of the same tokenizer drafts a chain, or a tree of the likeliest continuations.

It is EasySpec with every layer in a group of its own, so that all of its passes are exact.

Source: Leviathan et al. 2023, Chen et al. 2023; the trees, EasySpec (Wu et al. 2025) section 4.2.
"""

from __future__ import annotations

from jspec.checkpoints.same_tokenizer import check_same_tokenizer
from jspec.checkpoints.target import Target, load_beside
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.growth import Grower
from jspec.errors import UserError
from jspec.models.model import Model


def draft_model(model: Model, **growth) -> EasySpec:
    """Make a drafter of a decoder.

    Args:
      growth: of chain or tree, see `Grower`. Every level is a pass.

    Raises:
      ValueError: a depth, width or scale that makes no tree.
    """
    return EasySpec(
        decoder=LayerParallelDecoder(model), grower=Grower(**growth), calibration=Calibration.NEVER
    )


def load(
    path, *, target: Target, depth: int = 4, width: int = 1, score_temperature: float = 1.0
) -> LoadedDrafter:
    """A Hugging Face checkpoint as a drafter, in the target's dtype and on its mesh.

    Of an abstract target, its shapes.

    Raises:
      UserError: no path, options out of range, or another tokenizer than the target's.
    """
    if path is None:
        raise UserError(
            "draft-model needs the small model's checkpoint: give its path (drafter_path), a "
            "directory or a hub id"
        )
    small = load_beside(target, path, must_be_causal=True)
    check_same_tokenizer(target, small)
    try:
        drafter = draft_model(
            small.model,
            vocab_size=target.vocab_size,
            depth=depth,
            width=width,
            score_temperature=score_temperature,
        )
    except ValueError as error:
        raise UserError(f"draft-model: {error}") from None
    return LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)
