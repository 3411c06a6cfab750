"""Load a DiffuSpec drafter from a diffusion model's directory, fitted to a target.

A directory holds the model, and may hold `ngram/`, the proxy that was estimated for it.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jspec.checkpoints.beside import checkpoint_beside
from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.diffusion import load_diffusion
from jspec.checkpoints.ngram import read_ngram
from jspec.checkpoints.target import Target
from jspec.drafters.base import Method
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import AdaptiveLength, Controller, SurvivalLength
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix
from jspec.drafters.diffuspec.refinement import Refinement
from jspec.drafters.draft_vocabulary import IDS, VocabularyOptions, reduce_model
from jspec.errors import UserError
from jspec.models.ngram.table import NGramTable, place_ngram, uniform_table
from jspec.sharding import REPLICATED, SPLIT, split_axes
from jspec.state import Params

logger = logging.getLogger(__name__)

NGRAM_FOLDER = "ngram"
NO_NGRAM = "none"

PLACEMENTS = {"replicated": REPLICATED, "split": SPLIT}
"""Tables that place the model's weights on the target's mesh, by the option's value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffuSpecOptions(SearchOptions, Refinement, AdaptiveLength, VocabularyOptions):
    """Hold what a config may say of a DiffuSpec drafter; as published if not given.

    Handed on whole: to the search, to the passes, and as the adaptive controller.

    Attributes:
      n_lengths: draft sizes that are compiled from `shortest` to `longest`, both included.
      controller: `adaptive` (section 4), or `survival`, which weighs tokens against `costs`.
      costs: of a round with each length, separated by commas, in any unit; for `survival`.
      prefix: `frozen` keeps keys and values of the text; `recompute` reads all of it every round,
        as in the paper.
      refresh_every: rounds after which a frozen text is read anew; 0 for never.
      extra_slot: draft the slot that a shifted model's last mask predicts as well.
      ngram: the proxy's directory; if not given, `ngram` beside the model, where there is one;
        `none` for no proxy.
      placement: `replicated`, every device holds all of the model, or `split`, MLP and vocabulary
        are split over the devices that share the target.
    """

    n_lengths: int = 3
    controller: str = "adaptive"
    costs: str = ""
    prefix: str = "frozen"
    refresh_every: int = 0
    extra_slot: bool = False
    ngram: str = ""
    placement: str = "replicated"

    def __post_init__(self):
        super().__post_init__()
        if self.n_lengths < 1:
            raise ValueError(f"n_lengths must be at least 1, got {self.n_lengths}")
        for name, known in (
            ("controller", ("adaptive", "survival")),
            ("prefix", ("frozen", "recompute")),
            ("placement", PLACEMENTS),
        ):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ValueError(f"{name} must be {' or '.join(known)}, got {given!r}")
        if self.costs and self.controller == "adaptive":
            raise ValueError("costs are for controller survival: leave them out")
        if self.refresh_every and self.prefix == "recompute":
            raise ValueError("refresh_every is for a frozen prefix: leave it out")
        self.make_controller()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Spread about `n_lengths` lengths evenly from the shortest to the longest."""
        if self.n_lengths == 1:
            return (self.longest,)
        spread, last = self.longest - self.shortest, self.n_lengths - 1
        steps = (self.shortest + round(i * spread / last) for i in range(self.n_lengths))
        return tuple(dict.fromkeys(steps))

    def make_controller(self) -> Controller:
        """Make what the lengths of drafts follow.

        Raises:
          ValueError: costs that are no numbers, or not one for every length.
        """
        if self.controller == "adaptive":
            return self
        try:
            costs = tuple(float(cost) for cost in self.costs.split(",")) if self.costs else ()
        except ValueError:
            raise ValueError(
                f"costs must be numbers separated by commas, got {self.costs!r}"
            ) from None
        return SurvivalLength(lengths=self.lengths, costs=costs, smoothing=self.smoothing)

    def make_prefix(self) -> Prefix:
        """Say how the model sees the text; a round commits one more than it accepts."""
        if self.prefix == "recompute":
            return RECOMPUTE
        most = self.longest + self.extra_slot + 1
        windows = tuple(dict.fromkeys((min(4, most), most)))
        return Prefix(windows=windows, refresh_every=self.refresh_every or None, is_enough=True)


def load(path, target: Target, options: DiffuSpecOptions) -> tuple[DiffuSpec, Params]:
    """Load a diffusion language model, in the target's dtype and on its mesh.

    Of an abstract target, its shapes; then one that is only known by its hub id will do.

    Raises:
      UserError: a causal model, one of another tokenizer, or one that has no extra slot.
    """
    checkpoint, table = checkpoint_beside(target, path), PLACEMENTS[options.placement]
    found, whole = load_diffusion(checkpoint, target=target, table=table)
    decoder, params, ids = reduce_model(
        found.model, whole, checkpoint, target, options, table=table
    )
    n_logits = ids[IDS].shape[0] if ids else found.vocab_size
    try:
        drafter = DiffuSpec(
            model=dataclasses.replace(found, model=decoder),
            lengths=options.lengths,
            controller=options.make_controller(),
            prefix=options.make_prefix(),
            refinement=options,
            options=options,
            has_extra=options.extra_slot,
            mesh=target.mesh,
            vocab_axes=split_axes(target.mesh, table, "vocab", n_logits),
        )
    except ValueError as error:
        raise UserError(f"diffuspec: {error}") from None
    proxy = _proxy(checkpoint, options.ngram, target, options.static_share)
    return drafter, {"model": params} | proxy | ids


def _proxy(
    checkpoint: Checkpoint, ngram: str, target: Target, static_share: float
) -> dict[str, Params]:
    """Load the table of an n-gram model, everywhere on the target's mesh; none where none is found.

    Where the n-grams of the text are wanted and no model is found, a table that knows nothing.
    """
    folder = _proxy_folder(checkpoint, ngram, target)
    if folder is None and static_share == 1:
        if ngram != NO_NGRAM and not target.is_abstract:
            logger.warning(
                "diffuspec: no n-gram proxy at %s, so paths are searched by the model alone; "
                "estimate one (kind: ngram) and give its directory as option ngram, set "
                "static_share: 0.5 for the n-grams of the text itself, or ngram: none",
                f"{checkpoint.where}/{NGRAM_FOLDER}",
            )
        return {}
    table = uniform_table(target.vocab_size) if folder is None else _read_proxy(folder, target)
    everywhere = NamedSharding(target.mesh, PartitionSpec())
    if not target.is_abstract:
        return {"ngram": jax.device_put(table, everywhere)}

    def shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    return {"ngram": jax.tree.map(shape_of, table)}


def _read_proxy(folder: Path, target: Target) -> NGramTable:
    """The table of the model in a directory."""
    model = read_ngram(folder, tokenizer=target.path)
    if model.vocab_size > target.vocab_size:
        raise UserError(
            f"diffuspec: the n-gram proxy has {model.vocab_size} ids, the target "
            f"{target.vocab_size}; give one that was estimated with the target's tokenizer"
        )
    return place_ngram(model)


def _proxy_folder(checkpoint: Checkpoint, ngram: str, target: Target) -> Path | None:
    """Find the proxy: where it is said to be, else beside the model."""
    if ngram == NO_NGRAM:
        return None
    if ngram:
        return checkpoint_beside(target, ngram).files
    model = checkpoint.path
    beside = None if model is None else model / NGRAM_FOLDER
    return beside if beside is not None and beside.is_dir() else None


METHOD = Method(
    options=DiffuSpecOptions,
    load=load,
    needs="a diffusion model: give its path (drafter_path), a directory or a hub id, such as "
    "Dream-org/Dream-v0-Instruct-7B for a target of the Qwen2.5 series",
)
