"""Lists the drafters that every contract and proof test runs over; joining is one line.

A method may have many entries here (depths, widths, plans): the full certificate takes them all,
the quick one the one of each method that says `is_quick`. In reading order: `Entry`, the functions
that make untrained drafters of each method, and `ROSTER`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jspec.checkpoints.draft_vocabulary import head_rows
from jspec.checkpoints.target import Target
from jspec.drafters import load_drafter
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import AdaptiveLength, Controller, SurvivalLength
from jspec.drafters.diffuspec.options import EosRule, SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.drafters.diffuspec.refinement import Refinement
from jspec.drafters.draft_model import draft_model
from jspec.drafters.draft_vocabulary import IDS, with_head
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import contiguous
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.drafters.falcon import trees
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import Tree
from jspec.drafters.growth import Grower
from jspec.models import sar_head
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.models.model import Model, build, random_params
from jspec.models.ngram.table import place_ngram
from jspec.models.sar_head import LstmMode, SarConfig
from jspec.state import Params
from jspec.testing import drafters as hostile
from jspec.testing.models import perturbed, random_head
from jspec.train.ngram import estimate

Texts = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A drafter under test.

    Attributes:
      name: of the test case.
      method: what it is an entry of.
      options: of what makes it: a function of `MAKERS`, else `load_drafter`.
      is_chain: whether the rejection rule takes it, and strict equality is to be had.
      is_quick: stands for its method where time is short; at most one entry of a method does.
    """

    name: str
    method: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_chain: bool = False
    is_quick: bool = False

    def make(self, target: Target, texts: Texts) -> LoadedDrafter:
        """Make the drafter; `texts` are what plain decoding gave."""
        if self.method not in MAKERS:
            return load_drafter(self.method, target=target, **self.options)
        return MAKERS[self.method](target, texts, **self.options)


def untrained_draft_model(
    target: Target,
    texts: Texts = (),
    *,
    scale: float = 0.05,
    n_layers: int = 0,
    every: int = 1,
    **options,
) -> LoadedDrafter:
    """Draft with the target itself, with noise on its weights: right now and then.

    Args:
      n_layers: a truncated draft, of so many first layers, which shares the target's embedding and
        head.
      every: of which tokens are drafted.
    """
    small = perturbed(target, scale=scale)
    model, params = small.model, small.params
    if n_layers:
        first = {"n_layers": n_layers, "windows": model.config.windows[:n_layers]}
        model = build(dataclasses.replace(model.config, **first))
        params = target.params | {"layers": params["layers"][:n_layers], "norm": params["norm"]}
    model, params, ids = reduced(model, params, target, every)
    drafter = draft_model(model, vocab_size=target.vocab_size, **options)
    return LoadedDrafter(name="draft-model", drafter=drafter, params=params | ids)


def reduced(
    model: Model, params: Params, target: Target, every: int
) -> tuple[Model, Params, dict[str, Any]]:
    """Make a model draft every so many-th token; see `draft_vocabulary.reduce_model`."""
    if every == 1:
        return model, params, {}
    ids = every_id(target, every)
    return *with_head(model, params, head_rows(params, ids)), {IDS: ids}


def every_id(target: Target, every: int) -> jax.Array:
    """List every so many-th token, as a reduced draft vocabulary."""
    return jnp.arange(0, target.vocab_size, every, dtype=jnp.int32)


def untrained_falcon(
    target: Target,
    texts: Texts = (),
    *,
    tree: Tree,
    block_size: int = 2,
    n_layers: int = 1,
    mode: LstmMode = LstmMode.POINTWISE,
    block_align: str = "right",
    every: int = 1,
) -> LoadedDrafter:
    """Make an untrained head.

    Args:
      every: of which tokens are drafted.
    """
    decoder = dataclasses.replace(target.model.config, n_layers=n_layers, windows=())
    model = sar_head.build(SarConfig(decoder=decoder, block_size=block_size, lstm_mode=mode))
    params = {"head": random_head(model, dtype=target.dtype), "target": target.params}
    if every > 1:
        ids = every_id(target, every)
        params |= {IDS: ids, "rows": head_rows(target.params, ids)}
    drafter = Falcon(model=model, target=target.model, tree=tree, block_align=block_align)
    return LoadedDrafter(name="falcon", drafter=drafter, params=params)


def untrained_diffusion(
    target: Target,
    texts: Texts = (),
    *,
    lengths: tuple[int, ...],
    is_shifted: bool = True,
    is_text_causal: bool = False,
    has_ngram: bool = True,
    controller: Controller | None = None,
    every: int = 1,
    **options,
) -> LoadedDrafter:
    """Read the target, with noise on its weights, in both directions: right now and then.

    The highest id is the mask, and the proxy knows the texts that plain decoding gave.

    Args:
      controller: one that grows again after a token was refused, if not given.
      every: of which tokens are drafted.
      options: more of `DiffuSpec`.
    """
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
    model, weights, ids = reduced(build(decoder), small.params, target, every)
    drafter = DiffuSpec(
        model=DiffusionModel(model=model, config=config),
        lengths=lengths,
        controller=controller or adaptive,
        **options,
    )
    params = {"model": weights} | ids
    if has_ngram:
        params["ngram"] = place_ngram(estimate(texts, order=3, vocab_size=target.vocab_size))
    return LoadedDrafter(name="diffuspec", drafter=drafter, params=params)


def untrained_easyspec(
    target: Target,
    texts: Texts = (),
    *,
    size: int = 2,
    depth: int = 3,
    width: int = 1,
    n_layers: int = 5,
    plan: Parallelism = Parallelism.C,
    every: int = 1,
    **options,
) -> LoadedDrafter:
    """Draft with a deeper model than the target, begun as it, in groups of `size` layers.

    Args:
      every: of which tokens are drafted.
    """
    windows = (target.model.config.windows[0],) * n_layers
    model = build(dataclasses.replace(target.model.config, n_layers=n_layers, windows=windows))
    params = random_params(model, key=jax.random.key(3), scale=0.1)
    small = perturbed(target).params
    kept = (*small["layers"], *params["layers"][len(small["layers"]) :])
    params = jax.tree.map(lambda x: x.astype(target.dtype), small | {"layers": kept})
    model, params, ids = reduced(model, params, target, every)
    decoder = LayerParallelDecoder(model, contiguous(n_layers, size), plan, target.mesh)
    grower = Grower(vocab_size=target.vocab_size, depth=depth, width=width)
    drafter = EasySpec(decoder=decoder, grower=grower, **options)
    return LoadedDrafter(name="easyspec", drafter=drafter, params=decoder.place(params) | ids)


def entry(name: str) -> Entry:
    """Find the roster's entry of this name, or the grid's (`easyspec:plan=A:size=2:...`)."""
    if ":" not in name:
        return next(each for each in ROSTER if each.name == name)
    given = dict(pair.split("=") for pair in name.split(":")[1:])
    options = {
        "size": int(given["size"]),
        "width": int(given["width"]),
        "n_layers": 6,
        "plan": Parallelism(given["plan"]),
        "calibration": Calibration(given["calibration"]),
    }
    return Entry(name, "easyspec", options, is_chain=given["width"] == "1")


MAKERS: Mapping[str, Callable[..., LoadedDrafter]] = {
    "draft-model": untrained_draft_model,
    "falcon": untrained_falcon,
    "diffuspec": untrained_diffusion,
    "easyspec": untrained_easyspec,
    "oracle": hostile.oracle,
    "random": hostile.random_trees,
}
"""What makes a drafter from target, texts and options, by method; others are loaded by name."""

_SMALL_TREE = trees.parse(["root:5 0:3 1:2 00:2 10:1 000:2 100:1"])
_LEFT_TREE = trees.parse(["root:6 0:2 2:1 00:2 20:1 000:3 200:1"])
_DEEP_TREE = trees.parse(["root:4 0:3 1:1 00:1 01:1 000:1 0000:2"])

ROSTER = (
    Entry("none", "none", is_chain=True),
    Entry("none-padded", "none", {"padding": 4}, is_chain=True),
    Entry("prompt-lookup", "prompt-lookup", {"depth": 4}, is_chain=True, is_quick=True),
    Entry(
        "prompt-lookup-or-plain",
        "prompt-lookup",
        {"depth": 4, "drafts_always": False},
        is_chain=True,
    ),
    Entry("draft-model-chain", "draft-model", {"depth": 4}, is_chain=True),
    Entry("draft-model-tree", "draft-model", {"depth": 3, "width": 3}, is_quick=True),
    Entry(
        "draft-model-truncated",
        "draft-model",
        {"depth": 3, "n_layers": 1, "every": 2},
        is_chain=True,
    ),
    Entry(
        "draft-model-truncated-tree",
        "draft-model",
        {"depth": 3, "width": 3, "n_layers": 1, "every": 2},
    ),
    Entry("falcon-chain", "falcon", {"tree": trees.chain(4)}, is_chain=True),
    Entry("falcon-tree", "falcon", {"tree": _SMALL_TREE}, is_quick=True),
    Entry(
        "falcon-3-sequence-left",
        "falcon",
        {"tree": _LEFT_TREE, "block_size": 3, "mode": LstmMode.SEQUENCE, "block_align": "left"},
    ),
    Entry(
        "falcon-4-reduced",
        "falcon",
        {"tree": _DEEP_TREE, "block_size": 4, "n_layers": 2, "every": 2},
    ),
    Entry("falcon-released", "falcon", {"tree": trees.find("kmask2_8layer_tree")}),
    Entry(
        "diffuspec-path",
        "diffuspec",
        {"lengths": (4,), "prefix": Prefix(windows=(2, 5), refresh_every=3)},
        is_chain=True,
    ),
    Entry(
        "diffuspec-lengths",
        "diffuspec",
        {
            "lengths": (1, 3, 6),
            "is_text_causal": True,
            "prefix": Prefix(windows=(3, 8)),
            "options": SearchOptions(shape=Shape.BEAMS, static_share=0.5, weight=0.7),
            "has_extra": True,
        },
        is_quick=True,
    ),
    Entry(
        "diffuspec-tree",
        "diffuspec",
        {
            "lengths": (2, 4),
            "options": SearchOptions(shape=Shape.TREE, nodes=9),
            "refinement": Refinement(passes=2),
            "controller": SurvivalLength(lengths=(2, 4), costs=(1.5, 1.9)),
        },
    ),
    Entry(
        "diffuspec-beams",
        "diffuspec",
        {
            "lengths": (3,),
            "is_shifted": False,
            "has_ngram": False,
            "every": 2,
            "prefix": Prefix(windows=(4,), refresh_every=1),
            "options": SearchOptions(shape=Shape.BEAMS, eos_rule=EosRule.FORCED_LITERAL),
        },
    ),
    Entry(
        "easyspec-chain",
        "easyspec",
        {"size": 3, "calibration": Calibration.MISMATCH, "every": 2},
        is_chain=True,
    ),
    Entry("easyspec-tree", "easyspec", {"size": 2, "depth": 4, "width": 3}, is_quick=True),
    Entry("easyspec-never", "easyspec", {"size": 4, "width": 2, "calibration": Calibration.NEVER}),
    Entry("oracle-chain", "oracle", {"depth": 4, "error_every": 7}, is_chain=True, is_quick=True),
    Entry(
        "oracle-tree",
        "oracle",
        {
            "depth": 4,
            "width": 3,
            "error_every": 7,
            "captures": ("enter.1", "final"),
            "needs_picks": True,
        },
    ),
    Entry("always-wrong", "oracle", {"depth": 4, "error_every": 1}, is_chain=True),
    Entry("random-trees", "random", {"shapes": ((12, 4), (3, 2), (1, 0))}, is_quick=True),
)
