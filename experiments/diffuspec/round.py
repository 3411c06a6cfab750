"""The parts of a DiffuSpec round over one plain step, at published shapes, beside their floors.

    python -m experiments.diffuspec.round --out runs/diffuspec_round  one GPU of 80 GB
    python -m experiments.diffuspec.round --out runs/diffuspec_round --tiny  anywhere: does it run?

Dream 7B's shape drafts and Qwen2.5 7B's verifies; `--target qwen2.5-32b --target-layers 16` takes a
quarter of the paper's target, which does not fit beside Dream with room to work. Random weights: no
figure here says anything about acceptance. Parts take turns, each in a loop on the device, for
every length of text and every number of masks:

- a whole draft, with the text's keys and values kept (frozen) and with all of it read (recompute);
  a frozen draft reads what a round commits at most beside its masks;
- the target over the pending token and what was drafted, beside a plain step;
- the search alone, over log-probabilities that are there already, with and without an n-gram table.

A floor is what a part would take if it took as long as reading its weights once does. A pass that
reads the whole text also has arithmetic to do, which grows with the text.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.common.shapes import DIFFUSION, TARGETS, random_model
from experiments.common.tables import table
from experiments.common.timed_rounds import add_common_flags, n_read, random_target, write_record
from jspec.bench.costs import ROUNDS, drafts, forwards
from jspec.bench.timing import interleaved
from jspec.checkpoints.target import Target
from jspec.console.commands import exit_code, leave
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.lattice import Proxy, candidates
from jspec.drafters.diffuspec.length import AdaptiveLength
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.drafters.diffuspec.search import search
from jspec.infer.memory import state_shapes
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import Counters, DecodeState, Program
from jspec.models.diffusion import DiffusionConfig, DiffusionModel
from jspec.models.ngram import table as ngram
from jspec.provenance import device_record, provenance
from jspec.state import Context, replace
from jspec.train.ngram import estimate

PREFIXES = ("frozen", "recompute")
SPECIAL_IDS = 400
"""At the end of Dream's vocabulary: its mask, and ids that are none."""

ORDER = 3


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    add = parser.add_argument
    add("--target", choices=TARGETS, default="qwen2.5-7b")
    add("--target-layers", type=int, help="other than the target's own")
    add("--drafter", choices=DIFFUSION, default="dream-7b")
    add("--lengths", type=int, nargs="+", default=[20, 25, 30], help="masks of a round")
    add("--contexts", type=int, nargs="+", default=[256, 1024, 2048], help="tokens of text")
    add("--ngram-tokens", type=int, default=2_000_000, help="of the text the table is made of")
    add("--calls", type=int, default=5, help="times that each loop is run")
    return parser


def make_tiny(arguments: argparse.Namespace) -> None:
    """Seconds on a CPU."""
    arguments.target, arguments.drafter, arguments.dtype = "tiny", "tiny-dream", "float32"
    arguments.lengths, arguments.contexts = [2], [16]
    arguments.ngram_tokens, arguments.calls = 200, 1


def diffusion_model(arguments: argparse.Namespace) -> tuple[DiffusionModel, Any]:
    """Shifted, as Dream is, with random weights."""
    model, params = random_model(arguments.drafter, arguments.dtype)
    vocab_size = model.config.vocab_size
    mask_id = max(vocab_size - SPECIAL_IDS, vocab_size // 2)
    config = DiffusionConfig(mask_id=mask_id, is_shifted=True, n_ids=mask_id)
    return DiffusionModel(model=model, config=config), params


def make_drafter(model: DiffusionModel, lengths: tuple[int, ...], prefix: str) -> DiffuSpec:
    windows = (lengths[-1] + 1,) if prefix == "frozen" else ()
    return DiffuSpec(
        model=model,
        lengths=lengths,
        controller=AdaptiveLength(shortest=lengths[0], longest=lengths[-1]),
        prefix=Prefix(windows=windows, is_enough=True, n_widths=1),
    )


def state_after(target: Target, loaded: LoadedDrafter, context: int) -> DecodeState:
    """As after a text of zeros, of which nothing was read: times do not depend on it."""
    assert isinstance(loaded.drafter, DiffuSpec)
    length = jnp.full((1,), context, jnp.int32)
    capacity = context + ROUNDS + 1
    request = Request(tokens=(0,) * context, max_new_tokens=capacity)
    shapes = state_shapes(target, loaded, batch_size=1, capacity=capacity)
    cache, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    none = jnp.zeros((1,), jnp.int32)
    deepest = loaded.drafter.sizes[-1].max_depth
    return DecodeState(
        cache=cache,
        context=Context(
            tokens=jnp.zeros((1, capacity), jnp.int32),
            length=length,
            is_active=length > 0,
            sampling=sampling_of([request], max_length=capacity, max_stop_ids=1),
        ),
        drafter=replace(state, prefix=replace(state.prefix, n_read=length - 1)),
        stop_reason=none,
        counters=Counters(
            rounds=none, proposed=none, accepted=jnp.zeros((1, deepest + 1), jnp.int32)
        ),
    )


@functools.partial(jax.jit, static_argnames=("rounds",))
def searches(logprobs, tables, *, rounds: int):
    """Lattice and search, one after another, over the same log-probabilities."""
    proxy: Proxy | None = functools.partial(ngram.logprobs, tables[0]) if tables else None
    last = jnp.zeros((1, ORDER - 1), jnp.int32) if tables else None
    stop_ids = jnp.full((1, 1), -1, jnp.int32)

    def step(_, shift):
        paths = search(
            candidates(logprobs + shift), last, proxy, stop_ids=stop_ids, options=SearchOptions()
        )
        return jnp.where(jnp.isfinite(paths.score[0, 0]), 0.0, shift)

    return lax.fori_loop(0, rounds, step, jnp.float32(0))


def search_calls(arguments: argparse.Namespace, vocab_size: int) -> dict[Hashable, Callable]:
    rng = np.random.default_rng(0)
    # Low ids are more frequent, as words are.
    text = (vocab_size * rng.random(arguments.ngram_tokens) ** 4).astype(np.int32)
    made = ngram.place_ngram(estimate([text], order=ORDER, vocab_size=vocab_size))
    calls: dict[Hashable, Callable] = {}
    for k in arguments.lengths:
        logits = 2 * rng.standard_normal((1, k, vocab_size), np.float32)
        logprobs = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
        for name, tables in (("alone", ()), ("with n-grams", (made,))):
            calls["search", name, k] = functools.partial(searches, logprobs, tables, rounds=ROUNDS)
    return calls


def context_calls(
    target: Target, drafters: dict[str, LoadedDrafter], context: int
) -> dict[Hashable, Callable]:
    """What is timed at one length of text."""
    calls: dict[Hashable, Callable] = {}
    for name, loaded in drafters.items():
        assert isinstance(loaded.drafter, DiffuSpec)
        program = Program(target=target.model, drafter=loaded.drafter)
        state = state_after(target, loaded, context)
        for size, k in enumerate(loaded.drafter.lengths):
            calls["draft", name, k] = functools.partial(
                drafts, loaded.params, program, state, rounds=ROUNDS, size=size
            )
            calls["forward", k + 1] = functools.partial(
                forwards, target.params, target.model, state, n_nodes=k + 1, rounds=ROUNDS
            )
        calls["forward", 1] = functools.partial(
            forwards, target.params, target.model, state, n_nodes=1, rounds=ROUNDS
        )
    return calls


def milliseconds(calls: dict[Hashable, Callable], n_calls: int) -> dict[Hashable, float]:
    """Medians a round, the variants taking turns."""
    found = interleaved(calls, rounds=n_calls, warm_up=1)
    return {name: 1e3 * seconds["median"] / ROUNDS for name, seconds in found.items()}


def at_context(
    arguments: argparse.Namespace, target: Target, drafters: dict[str, LoadedDrafter], context: int
) -> dict[str, Any]:
    """The record of one length of text."""
    found = milliseconds(context_calls(target, drafters, context), arguments.calls)
    plain = found["forward", 1]
    return {
        "plain_ms": plain,
        "verify_over_plain": {k: found["forward", k + 1] / plain for k in arguments.lengths},
        **{
            f"{name}_over_plain": {k: found["draft", name, k] / plain for k in arguments.lengths}
            for name in PREFIXES
        },
    }


def floors(target: Target, drafter: LoadedDrafter, device: dict[str, Any]) -> dict[str, Any]:
    """Bytes that a pass reads of each model, and the least time that takes."""
    assert isinstance(drafter.drafter, DiffuSpec)
    itemsize = jnp.dtype(target.dtype).itemsize
    read = {
        "target": n_read(target.params, target.model.config),
        "drafter": n_read(drafter.params["model"], drafter.drafter.model.model.config),
    }
    sheet = device["data_sheet_GB_per_s"]
    return {
        "GB": {name: 1e-9 * itemsize * count for name, count in read.items()},
        "drafter_over_plain": read["drafter"] / read["target"],
        "ms": sheet and {name: 1e-6 * itemsize * count / sheet for name, count in read.items()},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a run."""
    lengths = tuple(sorted(set(arguments.lengths)))
    target = random_target(arguments.target, arguments.dtype, arguments.target_layers)
    model, params = diffusion_model(arguments)
    drafters = {
        prefix: LoadedDrafter(
            name="diffuspec",
            drafter=make_drafter(model, lengths, prefix),
            params={"model": params},
        )
        for prefix in PREFIXES
    }
    device = device_record()
    searched = milliseconds(search_calls(arguments, model.vocab_size), arguments.calls)
    return {
        **provenance(),
        "device": device,
        "target": arguments.target,
        "target_layers": target.model.config.n_layers,
        "drafter": arguments.drafter,
        "dtype": arguments.dtype,
        "rounds": ROUNDS,
        "calls": arguments.calls,
        "floor": floors(target, drafters["frozen"], device),
        "search_ms": {
            name: {k: searched["search", name, k] for k in arguments.lengths}
            for name in ("alone", "with n-grams")
        },
        "contexts": {
            context: at_context(arguments, target, drafters, context)
            for context in arguments.contexts
        },
    }


def text_of(record: dict[str, Any]) -> str:
    """The tables of a record."""
    floor = record["floor"]
    head = ("text", "masks", "plain, ms", "verify", "frozen draft", "recomputed draft")
    rows = [
        (
            *(str(context), str(k), f"{found['plain_ms']:.3f}"),
            f"{ratio:.2f}",
            *(f"{found[f'{name}_over_plain'][k]:.2f}" for name in PREFIXES),
        )
        for context, found in record["contexts"].items()
        for k, ratio in found["verify_over_plain"].items()
    ]
    search_rows = [
        (str(k), f"{ms:.3f}", f"{record['search_ms']['with n-grams'][k]:.3f}")
        for k, ms in record["search_ms"]["alone"].items()
    ]
    gb = floor["GB"]
    ms = floor["ms"]
    least = f", {ms['target']:.2f} and {ms['drafter']:.2f} ms" if ms else ""
    return (
        f"{table(head, rows)}\n\n"
        f"verify and drafts are in plain steps; the floor of a draft is "
        f"{floor['drafter_over_plain']:.2f} ({gb['target']:.3g} and {gb['drafter']:.3g} GB of "
        f"weights are read{least}), of a plain step 1\n\n"
        f"{table(('masks', 'search, ms', 'with n-grams, ms'), search_rows)}"
    )


def main() -> int:
    arguments = make_parser().parse_args()
    if arguments.tiny:
        make_tiny(arguments)
    record = measure(arguments)
    write_record(arguments.out, record)
    print(text_of(record))
    return 0


if __name__ == "__main__":
    leave(exit_code(main))
