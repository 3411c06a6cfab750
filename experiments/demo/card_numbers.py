"""What the card of a model tells and that takes time: held-out losses, and samples.

In reading order: losses beside those of an n-gram model, samples and how they are chosen.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jspec.checkpoints.target import Target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.train.corpus import CorpusRow, is_held_out, read_rows
from jspec.train.data import TextData
from jspec.train.encode import encode_rows
from jspec.train.ngram import NGramModel, estimate
from jspec.train.objective import NextToken
from jspec.train.packing import PADDING, Packed

ORDER = 3
"""Of the n-gram model beside which losses are told."""

SAMPLES = 10
OPENING = 24
NEW_TOKENS = 80
TEMPERATURE = 0.7

EVAL_BATCH = 8
DECODE_BATCH = 10


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


# --- losses --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HeldOut:
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

    def __add__(self, other: HeldOut) -> HeldOut:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return HeldOut(*(a + b for a, b in pairs))


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
    return int((data.train[name].segments[: n_used(data, name)] != PADDING).sum())


def segments_of(packed: Packed, n_sequences: int) -> list[np.ndarray]:
    """The texts in the first sequences."""
    tokens, segments, positions = (
        array[:n_sequences].ravel() for array in (packed.tokens, packed.segments, packed.positions)
    )
    is_text = segments != PADDING
    starts = np.flatnonzero(positions[is_text] == 0)
    return np.split(tokens[is_text], starts[1:]) if len(starts) else []


def held_out_losses(
    target: Target, data: TextData, ngrams: NGramModel, tokenizer: Tokenizer
) -> dict[str, HeldOut]:
    """By corpus: the same predicted tokens for both models, those with a weight."""
    objective = NextToken(target.model)

    @jax.jit
    def total(params, batch):
        loss = objective.loss(
            params,
            None,
            batch,
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
            rows_sharding=None,
        )
        return loss.total

    found = {}
    for name, packed in data.tests.items():
        if not len(packed):
            continue
        say(f"held-out loss of {name}, {len(packed)} sequences")
        totals = [float(total(target.params, batch)) for batch in batches_of(packed)]
        is_start = packed.positions.ravel() == 0
        logprobs = ngrams.logprobs(packed.tokens.ravel(), starts=is_start)
        found[name] = HeldOut(
            n_tokens=int(packed.weights.sum()),
            n_bytes=n_bytes(packed, tokenizer),
            model=sum(totals),
            ngram=-float(logprobs @ packed.weights.ravel().astype(np.float64)),
        )
    return found


def batches_of(packed: Packed) -> Iterator[dict[str, np.ndarray]]:
    """Equal batches; the last is filled up with sequences without weight."""
    n_missing = -len(packed) % EVAL_BATCH
    filled = {
        name: np.concatenate([array, np.zeros((n_missing, *array.shape[1:]), array.dtype)])
        for name, array in packed.arrays().items()
    }
    for start in range(0, len(packed), EVAL_BATCH):
        yield {name: array[start : start + EVAL_BATCH] for name, array in filled.items()}


def n_bytes(packed: Packed, tokenizer: Tokenizer) -> int:
    """Bytes of the text of all predicted tokens."""
    return sum(
        len(tokenizer.decode(tokens[(segments == segment) & (weights > 0)]).encode())
        for tokens, segments, weights in zip(
            packed.tokens, packed.segments, packed.weights, strict=True
        )
        for segment in range(segments.max() + 1)
    )


# --- samples -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """An opening from a held-out row, and what the model wrote after it."""

    row_id: str
    opening: tuple[int, ...]
    seed: int
    new: tuple[int, ...] = ()


def choose_samples(
    path: Path, tokenizer: Tokenizer, *, held_out: float, max_length: int
) -> list[Sample]:
    """The first held-out rows, in the order of the file, whose opening can be used."""
    samples: list[Sample] = []
    for row in read_rows(path):
        if len(samples) == SAMPLES:
            break
        if not is_held_out(row.id, held_out):
            continue
        opening = opening_of(row, tokenizer)
        if opening and len(opening) + NEW_TOKENS <= max_length:
            samples.append(Sample(row.id, opening, seed=len(samples)))
    return samples


def opening_of(row: CorpusRow, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that the model continues; none where the row is too short or nobody asks."""
    if row.messages:
        asks = [i for i, message in enumerate(row.messages) if message["role"] == "user"]
        return tokenizer.encode_chat(row.messages[: asks[0] + 1]) if asks else ()
    tokens = encode_rows([row], tokenizer, loss_on="all")[0].tokens.tolist()
    n_special = int(bool(tokens) and tokens[0] in tokenizer.special_ids)
    return tuple(tokens[: n_special + OPENING]) if len(tokens) > n_special + OPENING else ()


def write_samples(
    target: Target, samples: Mapping[str, Sequence[Sample]]
) -> dict[str, list[Sample]]:
    """Continue them all; each is what `jspec.generate` says to its opening and seed."""
    flat = [sample for chosen in samples.values() for sample in chosen]
    say(f"{len(flat)} samples")
    requests = [
        Request(
            tokens=sample.opening,
            max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
            seed=sample.seed,
            stop_ids=target.stop_ids,
        )
        for sample in flat
    ]
    answers = zip(flat, Engine(target, batch_size=DECODE_BATCH).decode(requests), strict=True)
    written = iter([dataclasses.replace(sample, new=answer.tokens) for sample, answer in answers])
    return {name: [next(written) for _ in chosen] for name, chosen in samples.items()}
