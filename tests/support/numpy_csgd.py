"""Coupled Sequential Glancing Distillation in NumPy and float64, one text after the other.

Written from the paper and the released trainer (Gao et al. 2024, section 3.3), not from
`jspec.train.csgd`: no packing, no masks over segments, loops where the library has einsums. Only
the random numbers are the library's, drawn from the same keys for the same places.

In reading order: the constants, the random numbers, the nets, the choice of glances, the losses of
one text, the loss of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Constants of the objective, with the released trainer's values; `schedule` None: a shift."""

    k: int = 2
    schedule: str | None = "code"
    epochs: int = 20
    align: str = "block"
    noise: float = 0.2
    dropout: float = 0.1
    temperature: float = 0.95
    soft_share: float = 0.9
    token_weight: float = 0.1
    has_loss_on_shown: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers of a step, `[B, T, ...]`.

    Attributes:
      noise: uniform in [-0.5, 0.5), of the input features.
      kept: what dropout keeps, in the first and in the second pass.
      order: uniform; candidates are taken from the smallest on.
      lengths: of runs.
      label: uniform in [0, 1), the share of the teacher's probability that is before the label.
    """

    noise: np.ndarray
    kept: tuple[np.ndarray, np.ndarray]
    order: np.ndarray
    lengths: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, key, *, shape, width: int, k: int, dropout: float) -> Draws:
        noise, first, choice, second, label = jax.random.split(key, 5)
        order, lengths = jax.random.split(choice)
        rows = [jax.random.fold_in(label, n) for n in range(shape[0] * shape[1])]
        labels = [float(jax.random.uniform(row)) for row in rows]
        wide = (*shape, width)
        return cls(
            noise=np.asarray(jax.random.uniform(noise, wide, minval=-0.5, maxval=0.5), float),
            kept=(
                np.asarray(jax.random.bernoulli(first, 1 - dropout, wide)),
                np.asarray(jax.random.bernoulli(second, 1 - dropout, wide)),
            ),
            order=np.asarray(jax.random.uniform(order, shape)),
            lengths=np.asarray(jax.random.randint(lengths, shape, 1, max(k, 2))),
            label=np.asarray(labels).reshape(shape),
        )

    def arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


# --- nets ----------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def rotated(x, theta):
    """Rows `[L, heads, H]` at positions 0, 1, ...; the halves of a head are pairs."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def block(x, layer, config, k: int):
    """Attention and MLP; a row sees rows up to the end of its block of k."""
    L, H, eps = len(x), config.head_dim, config.norm_eps
    weights = layer["attention"]
    z = norm(x, layer["attention_norm"], eps) if "attention_norm" in layer else x
    q, key, value = ((z @ weights[name]).reshape(L, -1, H) for name in "qkv")
    q, key = rotated(q, config.rope.theta), rotated(key, config.rope.theta)
    group = q.shape[1] // key.shape[1]
    heads = []
    for n in range(q.shape[1]):
        scores = q[:, n] @ key[:, n // group].T / np.sqrt(H)
        for i in range(L):
            scores[i, (i // k + 1) * k :] = -np.inf
        heads.append(np.exp(log_softmax(scores)) @ value[:, n // group])
    x = x + np.concatenate(heads, axis=-1) @ weights["o"]
    z, mlp = norm(x, layer["mlp_norm"], eps), layer["mlp"]
    gate = z @ mlp["gate"]
    return x + (gate * sigmoid(gate) * (z @ mlp["up"])) @ mlp["down"]


def features_of(target, config, tokens):
    """What the target's head reads at every position of one text."""
    x = target["embedding"][tokens]
    for layer in target["layers"]:
        x = block(x, layer, config, 1)
    return norm(x, target["norm"], config.norm_eps)


def drafted(head, config, k: int, embeddings, features, kept, dropout: float):
    """The head of one text, with an LSTM that has no memory."""
    x = np.concatenate([embeddings, features], axis=-1)
    for i, lstm in enumerate(head["lstm"]):
        write, new, out = np.split(x @ lstm["input"] + lstm["bias"], 3, axis=-1)
        x = sigmoid(out) * np.tanh(sigmoid(write) * np.tanh(new))
        if i == 0:
            x = np.where(kept, x / (1 - dropout), 0)
    for layer in head["layers"]:
        x = block(x, layer, config, k)
    return x


# --- glances -------------------------------------------------------------------------------------


def glance_share(schedule: str, epoch: int, epochs: int) -> float:
    """lambda."""
    first, last = {"code": (0.45, 0.10), "paper": (0.4, 0.0)}[schedule]
    return first + (last - first) * epoch / epochs


def shown_positions(supervised, n_wrong, share, k, align, order, lengths, L) -> list[int]:
    """Positions of one text whose answer becomes their input."""
    if k == 1:
        return []
    if align == "block":
        starts = [j for j in supervised if j % k == 0]
    else:
        starts = supervised[::k] if k == 2 else supervised[::k][:-1]
    n = int(share * n_wrong)
    taken = sorted(starts, key=lambda j: order[j])[: n if k == 2 else n // k]
    shown = {j + i for j in taken for i in range(1 if k == 2 else lengths[j])}
    return sorted(j for j in shown if j + k + 1 < L)


# --- losses --------------------------------------------------------------------------------------


def losses(predicted, wanted, z, teacher, label, temperature: float):
    """L_reg, L_soft and L_hard of one position."""
    gap = np.abs(predicted - wanted)
    regression = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
    theirs = np.exp(log_softmax(teacher / temperature))
    ours = np.exp(log_softmax(z / temperature))
    soft = (np.exp(log_softmax(teacher)) * np.log(theirs / (ours + 1e-8))).sum()
    return regression, soft, -log_softmax(z)[label]


def text_loss(tokens, weights, nets, options: Options, draws, share: float) -> dict[str, float]:
    """Sums over one text.

    Args:
      draws: of this text's places.
      share: lambda.
    """
    head, target, config = nets
    L, k = len(tokens), options.k
    at = [j for j in range(L - k) if weights[j] > 0]
    sums: dict[str, float] = dict.fromkeys(("total", "weight", "shown"), 0.0)
    sums |= dict.fromkeys(("feature_loss", "soft_loss", "hard_loss"), 0.0)
    if len(at) < 2:
        return sums
    f = features_of(target, config, tokens)
    teacher = f @ target["head_weight"]
    clean = f if not options.noise else f + draws.noise * options.noise * 512 / L
    following = [*tokens[1:], 0]

    def run(features, tokens, kept):
        embeddings = target["embedding"][np.asarray(tokens)]
        out = drafted(head, config, k, embeddings, features, kept, options.dropout)
        return out, out @ target["head_weight"]

    shown: list[int] = []
    features, inputs = clean.copy(), list(following)
    if options.schedule is not None:
        _, guess = run(features, inputs, draws.kept[0])
        n_wrong = sum(guess[j].argmax() != teacher[j + k].argmax() for j in at)
        shown = shown_positions(at, n_wrong, share, k, options.align, draws.order, draws.lengths, L)
        for j in shown:
            features[j], inputs[j] = f[j + k], tokens[j + k + 1]
    out, z = run(features, inputs, draws.kept[1])
    for j in at:
        if j in shown and not options.has_loss_on_shown:
            continue
        masses = np.cumsum(np.exp(teacher[j + k] - teacher[j + k].max()))
        label = (masses <= draws.label[j] * masses[-1]).sum()
        regression, soft, hard = losses(
            out[j], f[j + k], z[j], teacher[j + k], label, options.temperature
        )
        distance = options.soft_share * soft + (1 - options.soft_share) * hard
        sums["total"] += regression + options.token_weight * distance
        sums["weight"] += 1
        for name, one in zip(("feature", "soft", "hard"), (regression, soft, hard), strict=True):
            sums[f"{name}_loss"] += one
    sums["shown"] = float(len(shown))
    for row in range(k):
        counted = [j for j in at if j not in shown and j % k == row]
        hits = [z[j].argmax() == teacher[j + k].argmax() for j in counted]
        sums[f"agreement_{row + 1}"] = float(sum(hits))
        sums[f"agreement_{row + 1}_of"] = float(len(hits))
    return sums


def batch_loss(
    options: Options, config, params, frozen, batch, *, key, step: int, steps: int
) -> dict[str, float]:
    """Sums over all texts of a batch.

    Args:
      config: sizes of the target; the head's blocks have the same.
    """
    head, target = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, frozen)
    )
    tokens, segments, weights = (
        np.asarray(batch[name]) for name in ("tokens", "segments", "weights")
    )
    draws = Draws.of(
        key,
        shape=tokens.shape,
        width=config.width,
        k=options.k,
        dropout=options.dropout,
    )
    share = 0.0
    if options.schedule is not None:
        share = glance_share(options.schedule, step * options.epochs // steps, options.epochs)
    sums: dict[str, float] = {}
    for row in range(len(tokens)):
        for text in range(segments[row].max() + 1):
            at = np.flatnonzero(segments[row] == text)
            here = jax.tree.map(lambda x, row=row, at=at: x[row][at], draws.arrays())
            found = text_loss(
                list(tokens[row][at]),
                weights[row][at],
                (head, target, config),
                options,
                Draws(**here),
                share,
            )
            sums = {name: sums.get(name, 0.0) + found.get(name, 0.0) for name in sums | found}
    return sums
