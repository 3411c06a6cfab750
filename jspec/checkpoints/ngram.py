"""Directories that hold an n-gram model: `config.json` and `ngram.safetensors`.

In reading order: `write_ngram`, `read_ngram`, how numbers are kept in 16 bits, and the digest by
which a tokenizer is known again.

The tensors, for each length n: `logprobs.n`, `log_backoffs.n` (not of the longest), and from n = 2
on `fan.n`, how many n-grams continue each n-gram that is one token shorter, and `tokens.n`, their
last tokens, all in order. Integers have the fewest bits that they fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jspec.checkpoints.tensor_files import read_json
from jspec.checkpoints.tokenizer.copies import vocabulary_digest
from jspec.errors import UserError
from jspec.models.ngram.model import Grams, NGramModel

CONFIG_FILE = "config.json"
TENSOR_FILE = "ngram.safetensors"

Precision = Literal["float32", "fixed16"]
"""How logarithms are kept: `fixed16` is 65,536 levels from the lowest to the highest of a table."""

_MODEL_TYPE = "ngram"


def write_ngram(
    directory: Path,
    model: NGramModel,
    *,
    precision: Precision = "float32",
    tokenizer: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Write a model.

    Args:
      precision: `fixed16` needs half the bytes; logarithms are then wrong by at most a 131,070th of
        their range, about 0.0001 nats, a thirtieth of what float16 would do.
      tokenizer: directory of the tokenizer whose ids they are; its digest is kept.
      facts: further entries of `config.json`.

    Returns:
      Bytes of both files.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": _MODEL_TYPE,
        "order": model.order,
        "vocab_size": model.vocab_size,
        "begin": model.begin,
        "n_grams": [len(grams) for grams in model.grams],
        "precision": precision,
        "discounts": [list(discounts) for discounts in model.discounts],
        "tokenizer_digest": None if tokenizer is None else vocabulary_digest(tokenizer),
        **(facts or {}),
    }
    tensors = {}
    for n, grams in enumerate(model.grams, 1):
        tensors |= _packed(f"logprobs.{n}", grams.logprobs, precision)
        if n < model.order:
            tensors |= _packed(f"log_backoffs.{n}", grams.log_backoffs, precision)
        if n > 1:
            contexts, last = np.divmod(grams.keys, model.n_ids)
            fan = np.bincount(contexts, minlength=len(model.grams[n - 2]))
            tensors |= {f"fan.{n}": _smallest(fan), f"tokens.{n}": _smallest(last)}
    save_file(tensors, directory / TENSOR_FILE)
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    return sum((directory / name).stat().st_size for name in (CONFIG_FILE, TENSOR_FILE))


def read_ngram(directory: Path, *, tokenizer: Path | None = None) -> NGramModel:
    """Read the model of a directory, as it was written; `place_ngram` puts it on the device.

    Args:
      tokenizer: directory of the tokenizer whose ids will be looked up.

    Raises:
      UserError: missing or broken files, or the model of another tokenizer.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    if config.get("model_type") != _MODEL_TYPE:
        raise UserError(
            f"{path}: expected model_type {_MODEL_TYPE!r}, given {config.get('model_type')!r}; "
            "give a directory that python -m jspec.train wrote for kind: ngram"
        )
    known = config.get("tokenizer_digest")
    if tokenizer is not None and known not in (None, vocabulary_digest(tokenizer)):
        raise UserError(
            f"{directory}: its n-grams are of another tokenizer than {tokenizer}; estimate them "
            "again with this one"
        )
    tensors = _read_tensors(directory / TENSOR_FILE)
    try:
        return _model(config, tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{directory}: {TENSOR_FILE} does not fit {CONFIG_FILE} ({type(error).__name__}: "
            f"{error}); write or download both again"
        ) from None


def _model(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> NGramModel:
    vocab_size, begin = int(config["vocab_size"]), config["begin"]
    n_ids = max(vocab_size, (-1 if begin is None else int(begin)) + 1)
    keys, grams = np.arange(n_ids), []
    for n in range(1, int(config["order"]) + 1):
        if n > 1:
            fan, last = tensors[f"fan.{n}"].astype(np.int64), tensors[f"tokens.{n}"]
            if len(fan) != len(keys) or np.any(last >= n_ids):
                raise ValueError(f"n-grams of length {n} continue others")
            keys = np.repeat(np.arange(len(fan)), fan) * n_ids + last
            if np.any(np.diff(keys) <= 0):
                raise ValueError(f"n-grams of length {n} are not sorted")
        values = _unpacked(f"logprobs.{n}", tensors)
        is_longest = n == config["order"]
        backoffs = np.zeros(len(keys)) if is_longest else _unpacked(f"log_backoffs.{n}", tensors)
        if not len(keys) == len(values) == len(backoffs):
            raise ValueError(f"{len(keys)} n-grams of length {n}, {len(values)} probabilities")
        grams.append(Grams(keys, values, backoffs))
    discounts = tuple((float(a), float(b), float(c)) for a, b, c in config.get("discounts", ()))
    return NGramModel(vocab_size, begin, tuple(grams), discounts)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the whole directory") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write or download it again") from None


# --- numbers in few bytes ------------------------------------------------------------------------


def _smallest(values: np.ndarray) -> np.ndarray:
    """Store counts or ids in the fewest bytes."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _packed(name: str, values: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    if precision == "float32":
        return {name: values.astype(np.float32)}
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    levels = (values - low) * (np.iinfo(np.uint16).max / (high - low or 1.0))
    return {name: np.rint(levels).astype(np.uint16), f"{name}.range": np.array([low, high])}


def _unpacked(name: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    values = tensors[name].astype(np.float64)
    if f"{name}.range" not in tensors:
        return values
    low, high = tensors[f"{name}.range"]
    share = values / np.iinfo(np.uint16).max
    return low * (1 - share) + high * share  # exact at both ends
