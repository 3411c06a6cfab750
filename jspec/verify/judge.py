"""Apply the law to rows of target logits: token, log-probability, gap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec import law
from jspec.law import Mode, Randomness
from jspec.state import Sampling, state


@state
class Judgement:
    """Hold what the law says at one row of logits.

    Attributes:
      token: the law's pick; meaningless where `is_bad`.
      is_bad: no token can be picked (`law.is_bad`).
      logprob: of the pick, under the distribution it was drawn from, nats. None unless asked for.
      gap: score of the pick less that of the runner-up. None unless asked for.
    """

    token: Int[Array, "*rows"]
    is_bad: Bool[Array, "*rows"]
    logprob: Float[Array, "*rows"] | None = None
    gap: Float[Array, "*rows"] | None = None


def judge(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    noise: Float[Array, "B V"] | None,
    mode: Mode,
    *,
    trace: bool = False,
) -> Judgement:
    """Pick the law's token for each row of logits."""
    processed = law.processed(logits, sampling, mode)
    score = law.add_noise(processed, sampling, noise)
    token = law.pick(score)
    verdict = Judgement(token=token, is_bad=law.is_bad(logits))
    if not trace:
        return verdict
    chosen = jnp.take_along_axis(processed, token[:, None], axis=1)[:, 0]
    best = jnp.take_along_axis(score, token[:, None], axis=1)[:, 0]
    is_pick = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :] == token[:, None]
    runner_up = jnp.max(jnp.where(is_pick, law.NEVER, score), axis=1)
    return Judgement(
        token=token,
        is_bad=verdict.is_bad,
        logprob=(chosen - jax.nn.logsumexp(processed, axis=1)).astype(jnp.float32),
        gap=(best - runner_up).astype(jnp.float32),
    )


def judge_nodes(
    logits: Float[Array, "B M V"],
    depth: Int[Array, "B M"],
    randomness: Randomness,
    max_depth: int,
    *,
    trace: bool = False,
) -> Judgement:
    """Pick the law's token at every node at once; all nodes of a depth share their noise."""
    rows, nodes, vocabulary = logits.shape
    noise = None
    if randomness.mode is not Mode.GREEDY:
        by_depth = jnp.stack([_drawn(randomness, d, vocabulary) for d in range(max_depth + 1)], 1)
        noise = jnp.take_along_axis(by_depth, depth[:, :, None], axis=1)
        noise = noise.reshape(rows * nodes, vocabulary)
    sampling = jax.tree.map(lambda x: jnp.repeat(x, nodes, axis=0), randomness.sampling)
    flat = judge(
        logits.reshape(rows * nodes, vocabulary), sampling, noise, randomness.mode, trace=trace
    )
    return jax.tree.map(lambda x: x.reshape(rows, nodes), flat)


def judge_level(
    logits: Float[Array, "B M V"],
    node: Int[Array, " B"],
    depth: Int[Array, ""],
    randomness: Randomness,
    *,
    trace: bool = False,
) -> Judgement:
    """Pick the law's token at one node of each row, all of the same depth."""
    row = jnp.take_along_axis(logits, node[:, None, None], axis=1)[:, 0]
    noise = randomness.noise(depth, logits.shape[2])
    return judge(row, randomness.sampling, noise, randomness.mode, trace=trace)


def _drawn(randomness: Randomness, depth: int, vocabulary: int) -> Float[Array, "B V"]:
    noise = randomness.noise(depth, vocabulary)
    assert noise is not None, "only a greedy program draws no noise"
    return noise
