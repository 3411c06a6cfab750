"""One list of drafters. Every contract and proof test runs over it; joining is one line.

A method may have many entries here (depths, widths, plans): the full certificate takes them all,
the quick one the one of each method that says `is_quick`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jspec.checkpoints.target import Target
from jspec.drafters import load_drafter
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import AdaptiveLength, Controller, SurvivalLength
from jspec.drafters.diffuspec.options import EosRule, SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.drafters.diffuspec.refinement import Refinement
from jspec.drafters.draft_model import draft_model
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import contiguous
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.drafters.falcon import trees
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.loading import head_rows
from jspec.drafters.falcon.trees import Tree
from jspec.drafters.growth import Grower
from jspec.models import sar_head
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.models.model import build, random_params
from jspec.models.ngram.table import place_ngram
from jspec.models.sar_head import LstmMode, SarConfig
from jspec.testing import drafters as hostile
from jspec.testing.models import perturbed, random_head
from jspec.train.ngram import estimate

Texts = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A drafter under test.

    Attributes:
      name: of the test case.
      method: what it is an entry of.
      make: from the target and the texts that plain decoding gave.
      is_chain: whether the rejection rule takes it, and strict equality is to be had.
      is_quick: stands for its method where time is short; at most one entry of a method does.
      is_placed: its weights lie on the target's mesh in a way of their own.
    """

    name: str
    method: str
    make: Callable[[Target, Texts], LoadedDrafter]
    is_chain: bool
    is_quick: bool = False
    is_placed: bool = False


def _draft_model(**options):
    def make(target: Target, texts: Texts) -> LoadedDrafter:
        small = perturbed(target)
        drafter = draft_model(small.model, vocab_size=target.vocab_size, **options)
        return LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)

    return make


def _oracle(**options):
    def make(target: Target, texts: Texts) -> LoadedDrafter:
        return hostile.oracle(texts, vocab_size=target.vocab_size, **options)

    return make


def _named(name: str, **options):
    return lambda target, texts: load_drafter(name, target=target, **options)


def untrained_falcon(
    tree: Tree,
    *,
    block_size: int = 2,
    n_layers: int = 1,
    mode: LstmMode = LstmMode.POINTWISE,
    block_align: str = "right",
    n_ids: int = 0,
):
    """An untrained head; its vocabulary is every other token where there are `n_ids`."""

    def make(target: Target, texts: Texts) -> LoadedDrafter:
        decoder = dataclasses.replace(target.model.config, n_layers=n_layers, windows=())
        config = SarConfig(decoder=decoder, block_size=block_size, lstm_mode=mode)
        model = sar_head.build(config)
        params = {"head": random_head(model, dtype=target.dtype), "target": target.params}
        if n_ids:
            ids = jnp.arange(n_ids, dtype=jnp.int32) * 2
            params |= {"ids": ids, "rows": head_rows(target, ids)}
        drafter = Falcon(model=model, target=target.model, tree=tree, block_align=block_align)
        return LoadedDrafter(name="falcon", drafter=drafter, params=params)

    return make


def untrained_diffusion(
    lengths: tuple[int, ...],
    *,
    is_shifted: bool = True,
    is_text_causal: bool = False,
    has_ngram: bool = True,
    controller: Controller | None = None,
    **options,
):
    """The target with noise on its weights, read in both directions: right now and then.

    The highest id is the mask, and the proxy knows the texts that plain decoding gave.

    Args:
      controller: one that grows again after a token was refused, if not given.
      options: more of `DiffuSpec`.
    """

    def make(target: Target, texts: Texts) -> LoadedDrafter:
        small = perturbed(target)
        decoder = dataclasses.replace(target.model.config, is_causal=False)
        config = DiffusionConfig(
            mask_id=target.vocab_size - 1,
            is_shifted=is_shifted,
            is_text_causal=is_text_causal,
            n_ids=target.vocab_size,
        )
        adaptive = AdaptiveLength(
            shortest=lengths[0], longest=lengths[-1], growth=2, tolerance=0.5, counts_bonus=True
        )
        drafter = DiffuSpec(
            model=DiffusionModel(model=build(decoder), config=config),
            lengths=lengths,
            controller=controller or adaptive,
            **options,
        )
        params = {"model": small.params}
        if has_ngram:
            params["ngram"] = place_ngram(estimate(texts, order=3, vocab_size=target.vocab_size))
        return LoadedDrafter(name="diffuspec", drafter=drafter, params=params)

    return make


def untrained_easyspec(
    size: int = 2,
    *,
    depth: int = 3,
    width: int = 1,
    n_layers: int = 5,
    plan: Parallelism = Parallelism.C,
    **options,
):
    """A deeper model than the target's, begun as it, in groups of `size` layers."""

    def make(target: Target, texts: Texts) -> LoadedDrafter:
        config = dataclasses.replace(
            target.model.config,
            n_layers=n_layers,
            windows=(target.model.config.windows[0],) * n_layers,
        )
        model = build(config)
        params = random_params(model, key=jax.random.key(3), scale=0.1)
        small = perturbed(target).params
        kept = (*small["layers"], *params["layers"][len(small["layers"]) :])
        params = jax.tree.map(lambda x: x.astype(target.dtype), small | {"layers": kept})
        decoder = LayerParallelDecoder(model, contiguous(n_layers, size), plan, target.mesh)
        grower = Grower(vocab_size=target.vocab_size, depth=depth, width=width)
        drafter = EasySpec(decoder=decoder, grower=grower, **options)
        return LoadedDrafter(name="easyspec", drafter=drafter, params=decoder.place(params))

    return make


def easyspec_entry(name: str) -> Entry:
    """Of the name that `grid.argument_of` gives it: `easyspec:plan=A:size=2:...`."""
    given = dict(pair.split("=") for pair in name.split(":")[1:])
    make = untrained_easyspec(
        int(given["size"]),
        width=int(given["width"]),
        n_layers=6,
        plan=Parallelism(given["plan"]),
        calibration=Calibration(given["calibration"]),
    )
    is_chain = given["width"] == "1"
    return Entry(name=name, method="easyspec", make=make, is_chain=is_chain, is_placed=True)


def _random(**options):
    return lambda target, texts: hostile.random_trees(vocab_size=target.vocab_size, **options)


ROSTER = (
    Entry(name="none", method="none", make=_named("none"), is_chain=True),
    Entry(name="none-padded", method="none", make=_named("none", padding=4), is_chain=True),
    Entry(
        name="prompt-lookup",
        method="prompt-lookup",
        make=_named("prompt-lookup", depth=4),
        is_chain=True,
        is_quick=True,
    ),
    Entry(
        name="draft-model-chain", method="draft-model", make=_draft_model(depth=4), is_chain=True
    ),
    Entry(
        name="draft-model-tree",
        method="draft-model",
        make=_draft_model(depth=3, width=3),
        is_chain=False,
        is_quick=True,
    ),
    Entry(
        name="falcon-chain", method="falcon", make=untrained_falcon(trees.chain(4)), is_chain=True
    ),
    Entry(
        name="falcon-tree",
        method="falcon",
        make=untrained_falcon(trees.parse(["root:5 0:3 1:2 00:2 10:1 000:2 100:1"])),
        is_chain=False,
        is_quick=True,
    ),
    Entry(
        name="falcon-3-sequence-left",
        method="falcon",
        make=untrained_falcon(
            trees.parse(["root:6 0:2 2:1 00:2 20:1 000:3 200:1"]),
            block_size=3,
            mode=LstmMode.SEQUENCE,
            block_align="left",
        ),
        is_chain=False,
    ),
    Entry(
        name="falcon-4-reduced",
        method="falcon",
        make=untrained_falcon(
            trees.parse(["root:4 0:3 1:1 00:1 01:1 000:1 0000:2"]),
            block_size=4,
            n_layers=2,
            n_ids=11,
        ),
        is_chain=False,
    ),
    Entry(
        name="falcon-released",
        method="falcon",
        make=untrained_falcon(trees.find("kmask2_8layer_tree")),
        is_chain=False,
    ),
    Entry(
        name="diffuspec-path",
        method="diffuspec",
        make=untrained_diffusion((4,), prefix=Prefix(windows=(2, 5), refresh_every=3)),
        is_chain=True,
    ),
    Entry(
        name="diffuspec-lengths",
        method="diffuspec",
        make=untrained_diffusion(
            (1, 3, 6),
            is_text_causal=True,
            prefix=Prefix(windows=(3, 8)),
            options=SearchOptions(shape=Shape.BEAMS, static_share=0.5, weight=0.7),
            has_extra=True,
        ),
        is_chain=False,
        is_quick=True,
    ),
    Entry(
        name="diffuspec-tree",
        method="diffuspec",
        make=untrained_diffusion(
            (2, 4),
            options=SearchOptions(shape=Shape.TREE, nodes=9),
            refinement=Refinement(passes=2),
            controller=SurvivalLength(lengths=(2, 4), costs=(1.5, 1.9)),
        ),
        is_chain=False,
    ),
    Entry(
        name="diffuspec-beams",
        method="diffuspec",
        make=untrained_diffusion(
            (3,),
            is_shifted=False,
            has_ngram=False,
            prefix=Prefix(windows=(4,), refresh_every=1),
            options=SearchOptions(shape=Shape.BEAMS, eos_rule=EosRule.FORCED_LITERAL),
        ),
        is_chain=False,
    ),
    Entry(
        name="easyspec-chain",
        method="easyspec",
        make=untrained_easyspec(3, calibration=Calibration.MISMATCH),
        is_chain=True,
    ),
    Entry(
        name="easyspec-tree",
        method="easyspec",
        make=untrained_easyspec(2, depth=4, width=3),
        is_chain=False,
        is_quick=True,
    ),
    Entry(
        name="easyspec-never",
        method="easyspec",
        make=untrained_easyspec(4, width=2, calibration=Calibration.NEVER),
        is_chain=False,
    ),
    Entry(
        name="oracle-chain",
        method="oracle",
        make=_oracle(depth=4, error_every=7),
        is_chain=True,
        is_quick=True,
    ),
    Entry(
        name="oracle-tree",
        method="oracle",
        make=_oracle(
            depth=4, width=3, error_every=7, captures=("enter.1", "final"), needs_picks=True
        ),
        is_chain=False,
    ),
    Entry(
        name="always-wrong", method="oracle", make=_oracle(depth=4, error_every=1), is_chain=True
    ),
    Entry(
        name="random-trees",
        method="random",
        make=_random(shapes=((12, 4), (3, 2), (1, 0))),
        is_chain=False,
        is_quick=True,
    ),
)


def entry(name: str) -> Entry:
    """The roster's entry of this name, or the grid's."""
    if ":" in name:
        return easyspec_entry(name)
    return next(e for e in ROSTER if e.name == name)


def entries(*, is_quick: bool) -> tuple[Entry, ...]:
    """Those that a certificate takes."""
    return tuple(entry for entry in ROSTER if entry.is_quick or not is_quick)
