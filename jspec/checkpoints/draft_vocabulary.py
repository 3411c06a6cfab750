"""The tokens that a drafter with a reduced vocabulary drafts: those its training learnt most often.

A drafter's directory has `token_counts.safetensors`, how often each token was learnt, and its
`config.json` may have `draft_vocab_size`, to how many tokens its training kept. Trainer and
drafters choose the same tokens by it. In reading order: the choice, the file, the part of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jspec.checkpoints.tensor_files import open_safetensors
from jspec.errors import UserError
from jspec.ops.linear import OutputsFirst, Weight, are_outputs_first
from jspec.state import Params

COUNTS_FILE = "token_counts.safetensors"
SIZE_KEY = "draft_vocab_size"


def most_frequent(counts: np.ndarray, size: int) -> np.ndarray:
    """Choose the most frequent tokens, ascending, int32; of equally frequent ones the lower ids.

    Args:
      counts: how often each token of the vocabulary was learnt.
    """
    order = np.argsort(-np.asarray(counts).astype(np.int64), kind="stable")
    return np.sort(order[:size]).astype(np.int32)


def write_counts(directory: Path, counts: np.ndarray) -> None:
    """Write how often each token was learnt."""
    from safetensors.numpy import save_file

    save_file({"counts": counts.astype(np.float64)}, directory / COUNTS_FILE)


def draft_size(values: Mapping[str, Any], where: str) -> int:
    """Read how many tokens a drafter was trained to draft; 0 for all.

    Args:
      values: of its `config.json`.
      where: names it, for messages.

    Raises:
      UserError: something else than a number of tokens.
    """
    size = values.get(SIZE_KEY) or 0
    if type(size) is not int or size < 0:
        raise UserError(f"{where}/config.json: {SIZE_KEY} must be a number of tokens, got {size!r}")
    return size


def draft_ids(
    directory: Path, vocab_size: int, size: int, n_known: int | None = None
) -> np.ndarray:
    """Choose the tokens that a drafter's directory says to draft, ascending.

    Args:
      vocab_size: of the target.
      size: how many.
      n_known: ids from here on the drafter's model does not have; all if not given.

    Raises:
      UserError: more than there are, or no counts, or of another vocabulary.
    """
    n_known = min(n_known or vocab_size, vocab_size)
    if not 1 <= size <= n_known:
        raise UserError(
            f"draft_vocabulary {size}: expected 0 or a number up to the {n_known} tokens "
            "of the vocabulary"
        )
    file = directory / COUNTS_FILE
    if not file.is_file():
        raise UserError(
            f"draft_vocabulary needs {file}, which python -m jspec.train writes; set it to 0"
        )
    tensors = open_safetensors(file)
    counts = tensors["counts"].read() if "counts" in tensors else np.zeros(0)
    if counts.shape != (vocab_size,):
        raise UserError(
            f"{file}: expected a tensor `counts` of {vocab_size} numbers, one a token; "
            "give the file that was written with the drafter"
        )
    return most_frequent(counts[:n_known], size)


def head_rows(params: Params, ids: Int[Array, " U"]) -> Weight:
    """Take the part of a model's head that scores these tokens, in the form of its matrices."""
    head = params.get("head_weight")
    if isinstance(head, OutputsFirst):
        return OutputsFirst(values=jnp.take(head.values, ids, axis=0))
    if head is not None:
        return jax.tree.map(lambda part: jnp.take(part, ids, axis=1), head)
    if are_outputs_first(params):
        return OutputsFirst(values=jnp.take(params["embedding"], ids, axis=0))
    return jax.tree.map(lambda part: jnp.take(part, ids, axis=0).T, params["embedding"])
