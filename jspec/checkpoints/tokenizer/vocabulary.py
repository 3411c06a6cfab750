"""Text to token ids and back: the vocabulary of a `tokenizer.json`.

`sentencepiece.py` has that of a `tokenizer.model`, with the same attributes and methods.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The tokens of a text.

    Attributes:
      ids: of the tokens.
      spans: the characters of the text that each token stands for, from and to; empty for a token
        that was added to the text.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class JsonVocabulary:
    """A vocabulary of the `tokenizers` library: the ids are those that it gives.

    Truncation and padding that the file may ask for are left out, since a prompt is never cut.

    Attributes:
      names: special tokens by role, `bos_token` and so on, where the vocabulary's own file tells.
      before, after: ids that belong around any text, such as BOS.
      special_ids: tokens that have no text, as the vocabulary's own files tell.
      byte_ids: tokens that stand for one byte each, of vocabularies with byte fallback.
    """

    def __init__(self, backend: Any):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.names: dict[str, str] = {}
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self.byte_ids = frozenset(i for i in ids if i is not None)
        self.before, self.after = self._around()

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Find what the file's post-processor puts before and after a text."""
        text = self._some_text()
        inner = self._backend.encode(text, add_special_tokens=False).ids
        whole = self._backend.encode(text, add_special_tokens=True).ids
        n = len(inner)
        first = next((i for i in range(len(whole)) if whole[i : i + n] == inner), 0)
        return tuple(whole[:first]), tuple(whole[first + n :])

    def _some_text(self) -> str:
        """Find a text that has tokens; a small vocabulary may know few letters."""
        ids = (i for i in range(self._backend.get_vocab_size()) if i not in self.special_ids)
        for text in itertools.chain(["a"], (self.decode([i]) for i in ids)):
            if self._backend.encode(text, add_special_tokens=False).ids:
                return text
        return ""

    @functools.cached_property
    def n_ids(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, texts: Sequence[str], *, is_whole: bool) -> list[Pieces]:
        """Split some texts; special tokens that stand in a text are found there.

        Args:
          is_whole: put `before` and `after` around each.
        """
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=is_whole)
        return [Pieces(each.ids, each.offsets) for each in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens, special ones as they are named; nothing is cleaned up."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """Find the id of a token by its name."""
        return self._backend.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """Name a token."""
        return self._backend.id_to_token(token_id)
