"""Held-out losses of a model beside those of an n-gram model, for its card."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jspec.checkpoints.target import Target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.train.data import TextData
from jspec.train.ngram import NGramModel, estimate
from jspec.train.objective import NextToken
from jspec.train.packing import PADDING, Packed

ORDER = 3
"""Of the n-gram model beside which losses are told."""

EVAL_BATCH = 8


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Losses on the held-out part of a corpus, or of several.

    Attributes:
      n_tokens: predicted tokens.
      n_bytes: of their text in UTF-8; special tokens have none.
      model, ngram: sums of negative log-probabilities, nats.
    """

    n_tokens: int
    n_bytes: int
    model: float
    ngram: float

    @property
    def nats_a_token(self) -> tuple[float, float]:
        """The model's, and the n-gram model's."""
        return self.model / self.n_tokens, self.ngram / self.n_tokens

    @property
    def bits_a_byte(self) -> tuple[float, float]:
        """The model's, and the n-gram model's."""
        n = math.log(2) * max(self.n_bytes, 1)
        return self.model / n, self.ngram / n

    @classmethod
    def sum(cls, some: Iterable[Losses]) -> Losses:
        """Those of some corpora together."""
        return cls(*map(sum, zip(*map(dataclasses.astuple, some), strict=True)))


def train_ngrams(data: TextData, *, vocab_size: int, begin: int | None) -> NGramModel:
    """An n-gram model of every sequence that training uses, each once."""
    parts = []
    for name, packed in data.train.items():
        parts += segments_of(packed, n_used(data, name))
    return estimate(parts, order=ORDER, vocab_size=vocab_size, begin=begin)


def n_used(data: TextData, name: str) -> int:
    """Sequences of a corpus that an epoch has: the first ones, where `repeats` is below 1."""
    return round(len(data.train[name]) * min(data.repeats.get(name, 1.0), 1.0))


def n_tokens_used(data: TextData, name: str) -> int:
    """Tokens in these sequences."""
    return int((data.train[name].arrays["segments"][: n_used(data, name)] != PADDING).sum())


def segments_of(packed: Packed, n_sequences: int) -> list[np.ndarray]:
    """The texts in the first sequences."""
    tokens, segments, positions = (
        packed.arrays[name][:n_sequences].ravel() for name in ("tokens", "segments", "positions")
    )
    is_text = segments != PADDING
    starts = np.flatnonzero(positions[is_text] == 0)
    return np.split(tokens[is_text], starts[1:]) if len(starts) else []


def held_out_losses(
    target: Target, data: TextData, ngrams: NGramModel, tokenizer: Tokenizer
) -> dict[str, Losses]:
    """By corpus: the same predicted tokens for both models, those with a weight."""
    objective, step = NextToken(target.model), jnp.zeros((), jnp.int32)

    @jax.jit
    def total(params, batch):
        key = jax.random.key(0)
        loss = objective.loss(params, None, batch, key=key, step=step, rows_sharding=None)
        return loss.total

    found = {}
    for name, packed in data.tests.items():
        if not len(packed):
            continue
        say(f"held-out loss of {name}, {len(packed)} sequences")
        batches = [
            {key: array[start : start + EVAL_BATCH] for key, array in packed.arrays.items()}
            for start in range(0, len(packed), EVAL_BATCH)
        ]
        is_start = packed.arrays["positions"].ravel() == 0
        logprobs = ngrams.logprobs(packed.arrays["tokens"].ravel(), starts=is_start)
        found[name] = Losses(
            n_tokens=int(packed.arrays["weights"].sum()),
            n_bytes=n_bytes(packed, tokenizer),
            model=sum(float(total(target.params, batch)) for batch in batches),
            ngram=-float(logprobs @ packed.arrays["weights"].ravel().astype(np.float64)),
        )
    return found


def n_bytes(packed: Packed, tokenizer: Tokenizer) -> int:
    """Bytes of the text of all predicted tokens."""
    return sum(
        len(tokenizer.decode(tokens[(segments == segment) & (weights > 0)]).encode())
        for tokens, segments, weights in zip(
            *(packed.arrays[name] for name in ("tokens", "segments", "weights")), strict=True
        )
        for segment in range(segments.max() + 1)
    )
