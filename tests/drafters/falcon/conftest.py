"""Falcon drafters over made-up texts: a target that is only features, and verdicts by chance.

In reading order: drafters and prompts, the three calls, what a round needs, `play`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jspec.drafters.falcon.checkpoint import write_checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import parse
from jspec.law import Mode, Randomness, Rule
from jspec.models import sar_head
from jspec.models.sar_head import LstmMode, SarConfig
from jspec.state import Context, Draft, Prompt, StopReason, TargetOutput, Verdict, replace
from jspec.testing.models import random_head, tiny_config, tiny_target
from jspec.testing.settings import settings
from tests.support.numpy_head import SlowHead
from tests.support.tolerances import tolerance

V, D, PROMPT, CAPACITY, SLOTS = 23, 16, 13, 64, 96
LENGTHS = np.asarray([2, 3, 5, 6, 9, 12, 13, 4], np.int32)
"""Of prompts and their first tokens."""
ROWS, ROUNDS, STOPS, IDLE = len(LENGTHS), 5, 4, 6
CLOSE = tolerance("float32").logits
TREE = parse(["root:3 0:2 1:1 00:2 01:1 10:1 000:2 001:1 100:1 0000:1 0010:1 1000:1"])

SMALL: dict[str, Any] = dict(width=D, mlp_width=16, n_heads=4, n_kv_heads=2, head_dim=4)
TARGET = tiny_target(vocab_size=V, n_layers=1, **SMALL)
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(0, V, (ROWS, CAPACITY)).astype(np.int32)
FEATURES = RNG.normal(size=(ROWS, CAPACITY, D)).astype(np.float32)
"""The target's, at every position of every row."""
HEAT = np.asarray([0, 1, 0.7, 0, 1.3, 1, 1, 0])


def head_of(drafter: Falcon, params, folder) -> SlowHead:
    """The head in NumPy, by way of a directory in the released layout."""
    config = drafter.model.config
    embedding = params["target"]["embedding"]
    write_checkpoint(folder, params["head"], config, embedding=embedding)
    return SlowHead(
        tensors=load_file(folder / "model.safetensors"),
        embedding=np.asarray(embedding),
        head=np.asarray(params["target"]["head_weight"]).T,
        n_heads=config.decoder.n_heads,
        block_size=config.block_size,
        is_sequence=config.is_sequence,
        eps=config.decoder.norm_eps,
    )


def falcon(k=2, n_layers=1, mode=LstmMode.POINTWISE, align="right", tree=TREE):
    decoder = tiny_config(vocab_size=V, n_layers=n_layers, norm_eps=0.1, **SMALL)
    model = sar_head.build(SarConfig(decoder, block_size=k, lstm_mode=mode))
    drafter = Falcon(model=model, target=TARGET.model, tree=tree, block_align=align)
    return drafter, {"head": random_head(model, scale=0.6), "target": TARGET.params}


def start(lengths=LENGTHS, idle=IDLE, **law) -> Prompt:
    is_text = np.arange(CAPACITY) < lengths[:, None]
    context = Context(
        tokens=jnp.asarray(np.where(is_text, TEXTS, 3)),
        length=jnp.asarray(lengths),
        is_active=jnp.asarray(np.arange(ROWS) != idle),
        sampling=settings(ROWS, **({"temperature": HEAT, "sample": np.arange(ROWS)} | law)),
    )
    is_read = (np.arange(CAPACITY) < lengths[:, None] - 1)[:, :PROMPT, None]
    features = {"final": jnp.asarray(np.where(is_read, FEATURES[:, :PROMPT], 9.0))}
    return Prompt(context=context, features=features, width=PROMPT, slots=SLOTS)


@functools.partial(jax.jit, static_argnames=("drafter", "chunk"))
def init(params, drafter, prompt, chunk=None):
    return drafter.init(params, prompt)


@functools.partial(jax.jit, static_argnames=("drafter", "mode", "rule"))
def propose(params, drafter, state, context, mode=Mode.PLAIN, rule=Rule.WALK):
    asked = Randomness(sampling=context.sampling, length=context.length, mode=mode, rule=rule)
    return drafter.propose(params, state, context, asked, 0)


@functools.partial(jax.jit, static_argnames="drafter")
def commit(params, drafter, state, context, draft, verdict, output):
    return drafter.commit(params, state, context, draft, verdict, output)


def verdict_of(drafter: Falcon, context: Context, draft: Draft, rng) -> Verdict:
    """A path of each live row that was drafted for, anything from the root to a leaf."""
    depth, parents = drafter.tree.depth, drafter.tree.parents()
    path, tokens = np.zeros((2, ROWS, depth + 1), np.int32)
    accepted = np.zeros(ROWS, np.int32)
    for row in range(ROWS):
        node = int(rng.choice(np.flatnonzero(draft.is_valid[row])))
        steps = [node]
        while steps[0]:
            steps.insert(0, parents[steps[0]])
        accepted[row] = len(steps) - 1
        path[row] = steps + steps[-1:] * (depth + 1 - len(steps))
        tokens[row, : len(steps)] = [*draft.token[row, steps[1:]], rng.integers(V)]
    next_token = tokens[np.arange(ROWS), accepted]
    emitted = np.where(context.is_active, accepted + 1, 0).astype(np.int32)
    return Verdict(
        path=jnp.asarray(path),
        tokens=jnp.asarray(tokens),
        n_accepted=jnp.asarray(accepted),
        next_token=jnp.asarray(next_token),
        n_emitted=jnp.asarray(emitted),
        stop_reason=jnp.full((ROWS,), StopReason.NONE, jnp.int32),
    )


def after(context: Context, verdict: Verdict) -> Context:
    tokens = np.array(context.tokens)
    for row, n in enumerate(verdict.n_emitted):
        tokens[row, context.length[row] :][:n] = verdict.tokens[row, :n]
    return replace(context, tokens=jnp.asarray(tokens), length=context.length + verdict.n_emitted)


def output_of(context: Context, draft: Draft, verdict: Verdict, rng) -> TargetOutput:
    """The features of the accepted path, and noise at all other nodes."""
    features = rng.normal(size=(*draft.token.shape, D)).astype(np.float32)
    for row, length in enumerate(context.length):
        for depth in range(verdict.n_emitted[row]):
            features[row, verdict.path[row, depth]] = FEATURES[row, length - 1 + depth]
    return TargetOutput(features={"final": jnp.asarray(features)})


@dataclasses.dataclass(frozen=True)
class Round:
    before: Context
    state: Any
    draft: Draft
    proposed: Any
    verdict: Verdict
    after: Context
    committed: Any


@dataclasses.dataclass(frozen=True)
class Played:
    """Some rounds of a drafter, with verdicts by chance."""

    drafter: Falcon
    params: Any
    head: SlowHead
    rounds: list[Round]


def play(drafter, params, head, prompt: Prompt, chunk=None) -> Played:
    """One row is idle from the start, and one stops after the first round."""
    rng, rounds = np.random.default_rng(1), []
    context, state = prompt.context, init(params, drafter, prompt, chunk)
    for i in range(ROUNDS):
        draft, proposed = propose(params, drafter, state, context)
        host = jax.tree.map(np.asarray, draft)
        verdict = verdict_of(drafter, context, host, rng)
        output = output_of(context, host, verdict, rng)
        new = after(context, verdict)
        if i == 0:
            new = replace(new, is_active=new.is_active.at[STOPS].set(False))
        committed = commit(params, drafter, proposed, new, draft, verdict, output)
        rounds.append(Round(context, state, host, proposed, verdict, new, committed))
        context, state = new, committed
    return Played(drafter, params, head, rounds)
