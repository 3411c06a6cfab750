"""What ends an answer: token ids for the engine, texts for whoever reads along."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stops:
    """What a prompt asks for, beside the target's own stop tokens.

    Attributes:
      ids: tokens that end the answer.
      texts: texts that end it.
    """

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def all_ids(self, own: Sequence[int]) -> tuple[int, ...]:
        """The target's own stop tokens and these, each once."""
        return tuple(dict.fromkeys((*own, *self.ids)))


def find_stops(
    texts: Sequence[str], ids: Sequence[int], tokenizer: Tokenizer | None, vocab_size: int
) -> Stops:
    """The stops of a prompt. A text that is a special token, which has no text, stops at it.

    Raises:
      UserError: an id outside the vocabulary, texts without a tokenizer, or a text of which a
        special token is only a part.
    """
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise UserError(
            f"stop id {outside[0]} is not in the vocabulary; ids go from 0 to {vocab_size - 1}"
        )
    if texts and tokenizer is None:
        raise UserError(
            "stop strings need a tokenizer, and the target's directory has none; give stop ids"
        )
    found, kept = list(ids), []
    for text in texts:
        assert tokenizer is not None
        token_id = tokenizer.id_of(text)
        if token_id is not None and token_id in tokenizer.special_ids:
            found.append(token_id)
            continue
        within = next((name for name in tokenizer.special_names if name in text), None)
        if within is not None:
            raise UserError(
                f"stop {text!r}: the special token {within!r} has no text, so that this is never "
                "found; give the token by itself, or the text without it"
            )
        kept.append(text)
    return Stops(tuple(dict.fromkeys(found)), tuple(kept))
