"""Apply the law to rows of target logits: token, log-probability, gap."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec import law
from jspec.law import Mode, Randomness
from jspec.ops.platform import backend
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
    verdict = Judgement(token=token, is_bad=law.is_bad(logits, token))
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


FEW_LOGITS = 2**20
"""Of all nodes on one device: so many cost a TPU less than the collectives of a walk's levels."""


def judges_all_nodes(mode: Mode, size: tuple[int, ...], *, is_chain: bool) -> bool:
    """Whether the law is computed at all nodes at once, rather than along the walk's path only.

    The picks are the same. Along the path fewer nodes are judged, which is what counts on a CPU,
    and wherever there are noise and filters to compute: it is the rule. All at once are

    - on a mesh that splits the vocabulary, greedy picks and few logits. With filters a node waits
      for some twenty collectives, and so does every level of a walk, but not every node;
    - on GPU everything on such a mesh, and chains. There a walk has as many levels as the draft,
      since a loop that ends early waits for the host, and each level launches the kernels of the
      law anew, some sixty with filters. A chain has a node a level, so that all at once are the
      same work in fewer launches.

    Args:
      size: of the logits, `"B M V"`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_split = mesh.size > mesh.shape.get("data", 1)
    if backend() == "gpu":
        return is_chain or is_split
    is_cheap = mode is Mode.GREEDY or math.prod(size) <= FEW_LOGITS * mesh.size
    return backend() == "tpu" and is_split and is_cheap


def judge_nodes(
    logits: Float[Array, "B M V"],
    depth: Int[Array, "B M"],
    randomness: Randomness,
    *,
    trace: bool = False,
) -> Judgement:
    """Pick the law's token at every node at once; all nodes of a depth share their noise."""
    rows, nodes, vocabulary = logits.shape
    flat = (rows * nodes, vocabulary)
    each = jax.tree.map(lambda x: jnp.repeat(x, nodes, axis=0), randomness)
    noise = each.noise(depth.reshape(-1), vocabulary)
    found = judge(logits.reshape(flat), each.sampling, noise, randomness.mode, trace=trace)
    return jax.tree.map(lambda x: x.reshape(rows, nodes), found)


def judge_level(
    logits: Float[Array, "B M V"],
    node: Int[Array, " B"],
    depth: Int[Array, ""],
    randomness: Randomness,
    *,
    trace: bool = False,
) -> Judgement:
    """Pick the law's token at one node of each row, all of the same depth."""
    row = _logits_at(logits, node)
    noise = randomness.noise(depth, logits.shape[2])
    return judge(row, randomness.sampling, noise, randomness.mode, trace=trace)


def _logits_at(logits: Float[Array, "B M V"], node: Int[Array, " B"]) -> Float[Array, "B V"]:
    """Take one node's logits of each row: on TPU by a slice a row, where a gather would copy all.

    Where a mesh is set that shards the rows it is a gather all the same: slices of single rows
    would travel.
    """
    is_split = jax.sharding.get_abstract_mesh().shape.get("data", 1) > 1
    if backend() != "tpu" or is_split:
        return jnp.take_along_axis(logits, node[:, None, None], axis=1)[:, 0]
    zero, size = jnp.zeros((), node.dtype), (1, 1, logits.shape[2])
    rows = [
        jax.lax.dynamic_slice(logits, (jnp.asarray(b, node.dtype), at, zero), size)
        for b, at in enumerate(node)
    ]
    return jnp.concatenate(rows)[:, 0]
