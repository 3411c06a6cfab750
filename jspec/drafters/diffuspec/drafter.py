"""Draft with a diffusion model: it fills a block of masks, a search makes a path or a tree of it.

In reading order: what is kept between rounds (`DiffuSpecState`), and the drafter itself.

Letters: as in `lattice`; R slots that are predicted, which are the masks and maybe one more.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), Algorithm 1. Differs: any batch, temperature
and filter under the house's law; what each module of this folder says.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jspec.drafters.base import DraftSize, chain_draft, chain_size
from jspec.drafters.diffuspec.lattice import (
    Lattice,
    Proxy,
    candidates,
    everything,
    first_stop,
    perturbed,
)
from jspec.drafters.diffuspec.length import Controller, ControllerState, bucket
from jspec.drafters.diffuspec.options import EosRule, SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix, PrefixState, predict, start_prefix
from jspec.drafters.diffuspec.refinement import ONE_PASS, Refinement
from jspec.drafters.diffuspec.search import Paths, search
from jspec.drafters.diffuspec.tree import lattice_tree, paths_tree
from jspec.drafters.draft_vocabulary import IDS, Ids
from jspec.law import Randomness, Rule
from jspec.models.diffusion import DiffusionModel, Slots
from jspec.models.ngram import table as ngram
from jspec.ops.top_k import split_top_k
from jspec.state import Context, Draft, Params, Prompt, replace, state

TEXT_CONTEXT = 2
"""Tokens that are looked for in the text of a row, at least."""


@state
class DiffuSpecState:
    """Hold what is kept between rounds; rows are on axis 0 of every leaf.

    Attributes:
      prefix: what is kept of the text.
      controller: what the lengths of drafts follow.
      n_generated: tokens before the first stop token of the last draft, slot by slot: L_gen.
      n_drafted: slots of the last draft.
    """

    prefix: PrefixState
    controller: ControllerState
    n_generated: Int[Array, " B"]
    n_drafted: Int[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffuSpec:
    """Draft with a diffusion model.

    The params are `{"model": ...}`, with a proxy also `"ngram"`, its table, and with a reduced
    vocabulary `"ids"`, which are drafted.

    Attributes:
      model: the diffusion model.
      lengths: k, how many masks a round may feed, ascending; a size each.
      controller: which of them a row wants.
      prefix: how the model sees the text.
      refinement: passes that fill the slots.
      options: how a draft is chosen from what they hold.
      has_extra: draft the slot that a shifted model's last mask predicts as well.
      mesh, vocab_axes: the mesh, and its axes over which the model's logits are split.
    """

    model: DiffusionModel
    lengths: tuple[int, ...]
    controller: Controller
    prefix: Prefix = RECOMPUTE
    refinement: Refinement = ONE_PASS
    options: SearchOptions = SearchOptions()
    has_extra: bool = False
    mesh: Mesh | None = None
    vocab_axes: tuple[str, ...] = ()

    captures = ()
    needs_picks = False

    def __post_init__(self):
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must ascend, got {self.lengths}")
        if self.has_extra and not self.model.config.is_shifted:
            raise ValueError("only a shifted model predicts a slot more than it has masks")

    def slots(self, size: int) -> Slots:
        """Say what is asked of the model for a draft of this size."""
        return Slots(n_masks=self.lengths[size], has_extra=self.has_extra)

    @property
    def sizes(self) -> tuple[DraftSize, ...]:
        counts = [self.slots(size).count for size in range(len(self.lengths))]
        if self.options.shape is Shape.PATH:
            return tuple(chain_size(count) for count in counts)
        return tuple(DraftSize(n_nodes=self._n_nodes(n), max_depth=n) for n in counts)

    def _n_nodes(self, depth: int) -> int:
        """Count the nodes of a tree, the root included: at least a path of this depth."""
        wanted = self.options.nodes or self.options.beam * depth
        return 1 + max(wanted, depth)

    def size(self, state: DiffuSpecState, context: Context) -> Int[Array, ""]:
        return bucket(self.controller.wanted(state.controller), self.lengths, context.is_active)

    def init(self, params: Params, prompt: Prompt) -> DiffuSpecState:
        context = prompt.context
        prefix = start_prefix(
            params["model"],
            self.model,
            self.prefix,
            context.tokens[:, : prompt.width],
            context.length - 1,
            capacity=context.capacity,
            n_masks=self.lengths[-1],
        )
        rows = context.length.shape[0]
        zeros = jnp.zeros((rows,), jnp.int32)
        return DiffuSpecState(
            prefix=prefix,
            controller=self.controller.init(rows),
            n_generated=zeros,
            n_drafted=zeros,
        )

    def propose(
        self,
        params: Params,
        state: DiffuSpecState,
        context: Context,
        randomness: Randomness,
        size: int,
    ) -> tuple[Draft, DiffuSpecState]:
        slots, stop_ids = self.slots(size), context.sampling.stop_ids
        with jax.named_scope("predict"):
            prediction, prefix = predict(
                params["model"],
                self.model,
                self.prefix,
                state.prefix,
                context,
                slots,
                self.refinement,
                params.get(IDS),
            )
        with jax.named_scope("search"):
            draft = self.choose(params, prediction.logprobs, context, randomness, size)
        n_drafted = jnp.full_like(context.length, slots.count)
        n_generated = jnp.minimum(first_stop(prediction.tokens, stop_ids) - 1, n_drafted)
        return draft, replace(state, prefix=prefix, n_generated=n_generated, n_drafted=n_drafted)

    def commit(self, params, state: DiffuSpecState, context, draft, verdict, output):
        is_live = verdict.n_emitted > 0
        moved = self.controller.update(
            state.controller, state.n_generated, verdict.n_accepted, state.n_drafted
        )

        def kept(new, old):
            return jnp.where(is_live.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return replace(state, controller=jax.tree.map(kept, moved, state.controller))

    # --- choosing --------------------------------------------------------------------------------

    def choose(
        self,
        params: Params,
        logprobs: Float[Array, "B R U"],
        context: Context,
        randomness: Randomness,
        size: int,
    ) -> Draft:
        """Choose a draft from what the model predicts: all of `propose` but the model's passes."""
        proxy = self._proxy(params, context)
        lattice = self._lattice(logprobs, randomness, params.get(IDS))
        last = None if proxy is None else _last_tokens(context, self._n_read(params["ngram"]))
        stop_ids, n_nodes = context.sampling.stop_ids, self.sizes[size].n_nodes
        given = {"stop_ids": stop_ids, "options": self.options}
        if self.options.shape is Shape.TREE:
            return lattice_tree(lattice, context.pending, last, proxy, n_nodes=n_nodes, **given)
        paths = search(lattice, last, proxy, **given)
        if self.options.shape is Shape.BEAMS:
            return paths_tree(paths, context.pending, stop_ids=stop_ids, n_nodes=n_nodes)
        return _chain(paths, context)

    def _lattice(
        self, logprobs: Float[Array, "B R U"], randomness: Randomness, drafted: Ids
    ) -> Lattice:
        """Find the candidates of every slot, with the law's noise where there is any to use."""
        options, sampling = self.options, randomness.sampling
        always = sampling.stop_ids if options.eos_rule is EosRule.FORCED_LITERAL else None
        limits = {"cap": options.cap, "mass": options.mass, "always": always}
        likeliest = functools.partial(candidates, logprobs, drafted=drafted, top_k=self._top_k)
        if randomness.rule is not Rule.WALK:
            # A draft that noise did not choose is a point mass, which the rejection rule knows.
            return likeliest(**limits)
        wide, top_k = everything(logprobs, drafted), self._top_k
        if 0 < options.wide < logprobs.shape[2]:
            wide = likeliest(cap=max(options.wide, options.cap), mass=jnp.inf, always=always)
            top_k = jax.lax.top_k
        noise = [
            randomness.draft_noise(depth, logprobs.shape[2], ids=wide.ids[:, depth])
            for depth in range(logprobs.shape[1])
        ]
        drawn = [one for one in noise if one is not None]
        if not drawn:
            return likeliest(**limits)
        noise = jnp.stack(drawn, axis=1)
        return perturbed(wide, noise, sampling.temperature, **limits, top_k=top_k)

    def _top_k(self, scores: Float[Array, "B R U"], k: int):
        """Take `lax.top_k` over what is drafted, which may be split over devices."""
        if self.mesh is None or not self.vocab_axes:
            return jax.lax.top_k(scores, k)
        return split_top_k(scores, k, self.mesh, self.vocab_axes)

    def _n_read(self, table: ngram.NGramTable) -> int:
        """Count the tokens before a slot that the proxy reads."""
        return max(table.order - 1, TEXT_CONTEXT if self.options.static_share < 1 else 0)

    def _proxy(self, params: Params, context: Context) -> Proxy | None:
        if "ngram" not in params:
            return None
        table, share = params["ngram"], self.options.static_share
        if share == 1:
            return functools.partial(ngram.logprobs, table)
        return functools.partial(
            ngram.logprobs_with_text,
            table,
            tokens=context.tokens,
            length=context.length,
            static_share=share,
        )


def _last_tokens(context: Context, count: int) -> Int[Array, "B C"]:
    """Return the text's last tokens, the pending one last; -1 where it is shorter."""
    at = context.length[:, None] - count + jnp.arange(count, dtype=jnp.int32)[None, :]
    tokens = jnp.take_along_axis(context.tokens, jnp.maximum(at, 0), axis=1)
    return jnp.where(at >= 0, tokens, -1)


def _chain(paths: Paths, context: Context) -> Draft:
    """Make a chain of the best path; a row without any has its root alone."""
    tokens = jnp.concatenate([context.pending[:, None], paths.tokens[:, 0]], axis=1)
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    return chain_draft(tokens, places <= paths.length[:, :1])
