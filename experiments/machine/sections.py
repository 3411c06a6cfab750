"""Sections of a first look: r(n), and a round of each drafter over plain ones, at published shapes.

Each returns the rows of its table. Random weights: no figure here says anything about acceptance.
Variants take turns, each in a loop on the device. A floor is what a part would take if it took as
long as reading its weights does; a pass that reads the whole text also has arithmetic to do, which
grows with the text.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.round_costs import round_costs
from experiments.common.shapes import n_parameters, n_read, random_model, random_target
from experiments.diffuspec.search_time import search_s
from experiments.easyspec.passes import NoAttention
from experiments.machine.profiles import Profile
from jspec.bench.costs import forwards, room_needed, started
from jspec.bench.timing import interleaved
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import AdaptiveLength
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_groups import Groups, contiguous, singles
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import find
from jspec.drafters.growth import Grower
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.models import sar_head
from jspec.models.blocks import causal_block
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.models.model import ForwardSteps, Model, empty_cache, merged
from jspec.models.sar_head import SarConfig
from jspec.provenance import device_record
from jspec.state import Params
from jspec.testing.models import random_head

Rows = list[dict[str, object]]

ROUNDS, CALLS = 16, 7
"""Passes of a loop, and times that it is run."""

SPECIAL_IDS = 400
"""At the end of Dream's vocabulary: its mask, and ids that are none."""


# --- the target ----------------------------------------------------------------------------------


def nodes(profile: Profile) -> Rows:
    """Passes of the target over n nodes over a pass over one, and that against the bandwidth.

    A pass over one node reads the weights, and keys and values of every row.
    """
    target, found = random_target(profile.target, profile.dtype), []
    config, itemsize = target.model.config, jnp.dtype(target.dtype).itemsize
    sheet = device_record()["data_sheet_GB_per_s"]
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    for rows in profile.rows:
        for context in profile.contexts:
            capacity = context + ROUNDS + max(profile.nodes)
            engine = Engine(target, batch_size=rows, max_length=capacity)
            request = Request(tokens=(0,) * context, max_new_tokens=capacity - context)
            start = started(engine, [request] * rows, capacity)
            run = functools.partial(forwards, target.params, target.model, start, rounds=ROUNDS)
            calls = {n: functools.partial(run, n_nodes=n) for n in profile.nodes}
            timed = interleaved(calls, rounds=CALLS)
            seconds = {n: each["median"] / ROUNDS for n, each in timed.items()}
            read = itemsize * (n_read(target.params, config) + rows * context * per_token) / 1e9
            row: dict[str, object] = {"rows x context": f"{rows} x {context}"}
            row |= {"ms at n = 1": 1e3 * seconds[1], "GB/s": read / seconds[1]}
            row["of data sheet"] = sheet and read / seconds[1] / sheet
            found.append(row | {f"n = {n}": each / seconds[1] for n, each in seconds.items()})
    return found


def costs_of(target: Target, drafters: dict[str, LoadedDrafter], context: int) -> dict[str, dict]:
    """Costs of rounds after a text of this length."""
    depth = max(size.max_depth for each in drafters.values() for size in each.drafter.sizes)
    capacity = room_needed(context, depth)
    request = Request(tokens=(0,) * context, max_new_tokens=capacity - context)
    return round_costs(target, drafters, request, capacity)


# --- Falcon --------------------------------------------------------------------------------------


def falcon(profile: Profile) -> Rows:
    """A round of Falcon; the rest of it has the head's first pass.

    The floor reads the target's weights once, and the head's and the target's head's in every pass.
    """
    target = random_target(profile.target, profile.dtype)
    config = target.model.config
    decoder = dataclasses.replace(config, n_layers=1, windows=())
    head = sar_head.build(SarConfig(decoder=decoder, block_size=2))
    made = random_head(head, dtype=profile.dtype)
    drafter = Falcon(model=head, target=target.model, tree=find(profile.tree))
    params = {"head": made, "target": target.params}
    loaded = LoadedDrafter(name="falcon", drafter=drafter, params=params)
    a_pass = n_parameters(made) + config.vocab_size * config.width
    n_passes = len(drafter.plan.passes)
    found = costs_of(target, {"falcon": loaded}, profile.contexts[0])["falcon"]
    return [
        {
            "tree": profile.tree,
            "passes": n_passes,
            "text": profile.contexts[0],
            "plain, ms": 1e3 * found.pop("plain_s"),
            **found,
            "rest": found["round"] - found["draft"] - found["verify"],
            "floor of a round": 1 + n_passes * a_pass / n_read(target.params, config),
        }
    ]


# --- DiffuSpec -----------------------------------------------------------------------------------


def diffuspec(profile: Profile) -> Rows:
    """Drafts with the text's keys and values kept, and with all of it read; and the search alone.

    A frozen draft reads what a round commits at most beside its masks.
    """
    target, rows = random_target(profile.verifier, profile.dtype), []
    decoder, params = random_model(profile.diffusion, profile.dtype)
    mask_id = max(decoder.config.vocab_size - SPECIAL_IDS, decoder.config.vocab_size // 2)
    config = DiffusionConfig(mask_id=mask_id, is_shifted=True, n_ids=mask_id)
    model = DiffusionModel(model=decoder, config=config)
    floor = n_read(params, decoder.config) / n_read(target.params, target.model.config)
    for k in profile.lengths:
        frozen, recomputed = (
            LoadedDrafter(
                name="diffuspec",
                drafter=DiffuSpec(
                    model=model,
                    lengths=(k,),
                    controller=AdaptiveLength(shortest=k, longest=k),
                    prefix=Prefix(windows=windows, is_enough=True, n_widths=1),
                ),
                params={"model": params},
            )
            for windows in ((k + 1,), ())
        )
        search_ms = 1e3 * search_s(frozen)
        for context in profile.texts:
            found = costs_of(target, {"frozen": frozen, "recomputed": recomputed}, context)
            rows.append(
                {
                    "text": context,
                    "masks": k,
                    "plain, ms": 1e3 * found["frozen"]["plain_s"],
                    "verify": found["frozen"]["verify"],
                    **{f"{name} draft": each["draft"] for name, each in found.items()},
                    "floor of a draft": floor,
                    "search, ms": search_ms,
                }
            )
    return rows


# --- EasySpec ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("model", "groups", "steps", "width", "context"))
def _passes(
    params: Params,
    model: Model,
    cache,
    *,
    groups: Groups,
    steps: ForwardSteps,
    width: int,
    context: int,
):
    """Passes one after another, each over the tokens that the one before it found likeliest."""

    def step(_, carry):
        cache, tokens = carry
        block = causal_block(jnp.full((1,), context, jnp.int32), width)
        output, cache = steps.run(merged(model, params), model.config, cache, tokens, block, groups)
        return cache, jnp.argmax(output.logits, axis=-1).astype(jnp.int32)

    return lax.fori_loop(0, ROUNDS, step, (cache, jnp.zeros((1, width), jnp.int32)))[1]


def easyspec_round(profile: Profile) -> Rows:
    """A round of EasySpec, where the small model has the target's own weights, and so its shape.

    With a larger target the draft stays what it is here, and the plain round grows.
    """
    target, size = (
        random_target(profile.series, profile.dtype),
        profile.sizes[len(profile.sizes) // 2],
    )
    decoder = LayerParallelDecoder(target.model, contiguous(target.model.config.n_layers, size))
    grower = Grower(vocab_size=target.vocab_size, depth=5, width=max(profile.widths))
    drafter = EasySpec(decoder=decoder, grower=grower)
    loaded = LoadedDrafter(name="easyspec", drafter=drafter, params=target.params)
    text = profile.passes_after[-1]
    found = costs_of(target, {"easyspec": loaded}, text)["easyspec"]
    plain = {"plain, ms": 1e3 * found.pop("plain_s")}
    return [{"layers a group": size, "text": text, **plain, **found}]


def easyspec(profile: Profile) -> Rows:
    """Passes in groups over an exact one, on one device (plan C).

    A pass without attention tells what MLPs and head take, so that attention has the rest, a share
    a. If the G groups of L layers took as long as G of these do, a pass in groups would take
    1 - a (1 - G / L) of an exact one: the figure in brackets. It reads the same weights, so that
    nothing can be gained where reading them is what takes the time.
    """
    model, params = random_model(profile.series, profile.dtype)
    layers, plain, rows = model.config.n_layers, ForwardSteps(), []
    kinds: dict[object, tuple[Groups, ForwardSteps]] = {
        "exact": (singles(layers), plain),
        "no attention": (singles(layers), NoAttention()),
        **{n: (contiguous(layers, n), plain) for n in profile.sizes},
    }
    for context in profile.passes_after:
        for width in profile.widths:
            cache = empty_cache(model.config, 1, context + width, jnp.dtype(profile.dtype))
            run = functools.partial(_passes, params, model, cache, width=width, context=context)
            calls = {
                kind: functools.partial(run, groups=groups, steps=steps)
                for kind, (groups, steps) in kinds.items()
            }
            timed = interleaved(calls, rounds=CALLS)
            seconds = {kind: each["median"] / ROUNDS for kind, each in timed.items()}
            share = 1 - seconds["no attention"] / seconds["exact"]
            row: dict[str, object] = {"text": context, "rows": width}
            row |= {"exact pass, ms": 1e3 * seconds["exact"], "attention's share": share}
            for n in profile.sizes:
                hoped = 1 - share * (1 - len(kinds[n][0]) / layers)
                row[f"N = {n}"] = f"{seconds[n] / seconds['exact']:.3f} ({hoped:.3f})"
            rows.append(row)
    return rows
