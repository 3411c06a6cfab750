"""A DiffuSpec drafter from a diffusion model's directory, fitted to a target.

A directory holds the model, and may hold `ngram/`, the proxy that was estimated for it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.diffusion import load_diffusion
from jspec.checkpoints.ngram import read_ngram, read_sizes
from jspec.checkpoints.target import Target, checkpoint_beside
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import Choices, DiffuSpec, Shape
from jspec.drafters.diffuspec.lattice import Scoring
from jspec.drafters.diffuspec.length import AdaptiveLength, Controller, SurvivalLength
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix
from jspec.drafters.diffuspec.refinement import Confidence, Refinement, Schedule
from jspec.drafters.diffuspec.search import EosRule
from jspec.drafters.options import named
from jspec.errors import UserError
from jspec.models.ngram.model import NGramModel, NGramSizes
from jspec.models.ngram.table import place_ngram, table_shapes, uniform_table
from jspec.sharding import REPLICATED, SPLIT, split_axes
from jspec.state import Params

logger = logging.getLogger(__name__)

NGRAM_FOLDER = "ngram"
NO_NGRAM = "none"

PLACEMENTS = {"replicated": REPLICATED, "split": SPLIT}
"""Tables that place the model's weights on the target's mesh, by the option's value."""


def load(
    path,
    *,
    target: Target,
    shortest: int = 20,
    longest: int = 30,
    n_lengths: int = 3,
    controller: str = "adaptive",
    growth: int = 10,
    smoothing: float = 0.5,
    tolerance: float = 1.0,
    counts_bonus: bool = False,
    costs: str = "",
    passes: int = 1,
    schedule: str = "dream",
    confidence: str = "top1",
    prefix: str = "frozen",
    refresh_every: int = 0,
    cap: int = 15,
    mass: float = 0.8,
    wide: int = 0,
    beam: int = 3,
    weight: float = 0.5,
    score_temperature: float = 1.0,
    eos_rule: str = "argmax_depth",
    length_normalised: bool = True,
    shape: str = "path",
    nodes: int = 0,
    extra_slot: bool = False,
    ngram: str = "",
    static_share: float = 1.0,
    placement: str = "replicated",
) -> LoadedDrafter:
    """A diffusion language model, in the target's dtype and on its mesh.

    Of an abstract target, its shapes; then one that is only known by its hub id will do.

    Args:
      shortest, longest: k_min and k_max in the paper, masks of a round; `n_lengths` sizes are
        compiled between them, both included.
      controller: `adaptive` (section 4), or `survival`, which weighs tokens against `costs`.
      growth, smoothing, tolerance, counts_bonus: of the adaptive one: delta, rho, eta.
      costs: of a round with each length, separated by commas, in any unit; for `survival`.
      passes, schedule, confidence: S, and which slots a pass fixes: `dream` or `llada`; `top1`,
        `margin` or `entropy`.
      prefix: `frozen` keeps keys and values of the text; `recompute` reads all of it every round,
        as in the paper.
      refresh_every: rounds after which a frozen text is read anew; 0 for never.
      cap, mass, beam: M_max, tau and B.
      wide: at temperature > 0, how many of a slot's likeliest tokens the noise chooses its
        candidates from; 0 for all.
      weight: lambda, of the model beside the proxy.
      score_temperature: s, what scores are divided by where they are compared across depths.
      eos_rule: `argmax_depth` or `forced_literal`.
      shape: `path`, `beams` (all of them in one tree) or `tree` (the `nodes` best prefixes).
      extra_slot: draft the slot that a shifted model's last mask predicts as well.
      ngram: the proxy's directory; if not given, `ngram` beside the model, where there is one;
        `none` for no proxy.
      static_share: of the proxy beside the n-grams of the text so far; 1 for the proxy alone. Below
        1 without a proxy, the n-grams of the text alone, the rest of the mass on all ids alike.
      placement: `replicated`, every device holds all of the model, or `split`, MLP and vocabulary
        are split over the devices that share the target.

    Raises:
      UserError: no path, options out of range, a causal model, or one of another tokenizer.
    """
    if path is None:
        raise UserError(
            "diffuspec needs a diffusion model: give its path (drafter_path), a directory or a "
            "hub id, such as "
            "Dream-org/Dream-v0-Instruct-7B for a target of the Qwen2.5 series"
        )
    if placement not in PLACEMENTS:
        raise UserError(
            f"diffuspec: placement must be {' or '.join(PLACEMENTS)}, got {placement!r}"
        )
    checkpoint = checkpoint_beside(target, path)
    model, params = load_diffusion(checkpoint, target=target, table=PLACEMENTS[placement])
    try:
        lengths = spread_lengths(shortest, longest, n_lengths)
        drafter = DiffuSpec(
            model=model,
            lengths=lengths,
            controller=_controller(
                controller,
                lengths,
                costs,
                growth=growth,
                smoothing=smoothing,
                tolerance=tolerance,
                counts_bonus=counts_bonus,
            ),
            prefix=_prefix(prefix, refresh_every, longest + extra_slot),
            refinement=Refinement(
                n_passes=passes,
                schedule=named(Schedule, "schedule", schedule),
                confidence=named(Confidence, "confidence", confidence),
            ),
            choices=Choices(
                cap=cap,
                mass=mass,
                wide=wide,
                beam=beam,
                scoring=Scoring(weight=weight, score_temperature=score_temperature),
                eos_rule=named(EosRule, "eos_rule", eos_rule),
                is_length_normalised=length_normalised,
                shape=named(Shape, "shape", shape),
                n_nodes=nodes,
                static_share=static_share,
            ),
            has_extra=extra_slot,
            mesh=target.mesh,
            vocab_axes=split_axes(target.mesh, PLACEMENTS[placement], "vocab", model.vocab_size),
        )
    except ValueError as error:
        raise UserError(f"diffuspec: {error}") from None
    return LoadedDrafter(
        name="diffuspec",
        drafter=drafter,
        params={"model": params} | _proxy(checkpoint, ngram, target, static_share),
    )


def spread_lengths(shortest: int, longest: int, count: int) -> tuple[int, ...]:
    """About `count` lengths from the shortest to the longest, evenly; both are among them.

    Raises:
      ValueError: no such lengths.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"shortest {shortest} must be at least 1 and at most longest {longest}")
    if count < 1:
        raise ValueError(f"n_lengths must be at least 1, got {count}")
    if count == 1 or shortest == longest:
        return (longest,)
    steps = [shortest + round(i * (longest - shortest) / (count - 1)) for i in range(count)]
    return tuple(dict.fromkeys(steps))


def _controller(
    name: str, lengths: tuple[int, ...], costs: str, *, smoothing: float, **adaptive
) -> Controller:
    if name == "adaptive":
        if costs:
            raise ValueError("costs are for controller survival: leave them out")
        return AdaptiveLength(
            shortest=lengths[0], longest=lengths[-1], smoothing=smoothing, **adaptive
        )
    if name != "survival":
        raise ValueError(f"controller must be adaptive or survival, got {name!r}")
    try:
        given = tuple(float(cost) for cost in costs.split(",")) if costs else ()
    except ValueError:
        raise ValueError(f"costs must be numbers separated by commas, got {costs!r}") from None
    return SurvivalLength(lengths=lengths, costs=given, smoothing=smoothing)


def _prefix(name: str, refresh_every: int, most_accepted: int) -> Prefix:
    """A round commits what it accepts and one more."""
    if name == "frozen":
        few, most = min(4, most_accepted + 1), most_accepted + 1
        windows = tuple(dict.fromkeys((few, most)))
        return Prefix(windows=windows, refresh_every=refresh_every or None, is_enough=True)
    if name != "recompute":
        raise ValueError(f"prefix must be frozen or recompute, got {name!r}")
    if refresh_every:
        raise ValueError("refresh_every is for a frozen prefix: leave it out")
    return RECOMPUTE


def _proxy(
    checkpoint: Checkpoint, ngram: str, target: Target, static_share: float
) -> dict[str, Params]:
    """The table of an n-gram model, everywhere on the target's mesh; none where none is found.

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
    everywhere = NamedSharding(target.mesh, PartitionSpec())
    model = None if folder is None else _read_proxy(folder, target)

    def place(leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    if isinstance(model, NGramSizes):
        return {"ngram": jax.tree.map(place, table_shapes(model))}
    if target.is_abstract:
        shapes = jax.eval_shape(lambda: uniform_table(target.vocab_size))
        return {"ngram": jax.tree.map(place, shapes)}
    table = uniform_table(target.vocab_size) if model is None else place_ngram(model)
    return {"ngram": jax.device_put(table, everywhere)}


def _read_proxy(folder: Path, target: Target) -> NGramModel | NGramSizes:
    """The model in a directory; of an abstract target, its sizes."""
    read = read_sizes if target.is_abstract else read_ngram
    model = read(folder, tokenizer=target.path)
    if model.vocab_size > target.vocab_size:
        raise UserError(
            f"diffuspec: the n-gram proxy has {model.vocab_size} ids, the target "
            f"{target.vocab_size}; give one that was estimated with the target's tokenizer"
        )
    return model


def _proxy_folder(checkpoint: Checkpoint, ngram: str, target: Target) -> Path | None:
    """Where the proxy is: where it is said to be, else beside the model."""
    if ngram == NO_NGRAM:
        return None
    if ngram:
        return checkpoint_beside(target, ngram).files
    model = checkpoint.directory
    beside = None if model is None else model / NGRAM_FOLDER
    return beside if beside is not None and beside.is_dir() else None
