"""Text in and out: tokenizers, chat templates, and text that grows token by token.

In reading order: `Tokenizer` and how it is loaded, then `TextStream`, which turns the tokens of one
answer into text, finds stop strings, and knows how much of the text can be shown already.

The text of an answer is what the tokenizer decodes from its new tokens alone, special tokens and
the stop token left out, cut before the first stop string.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from logging import CRITICAL
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.models.tensor_files import check_not_pointer

Messages = Sequence[dict[str, str]]
"""A conversation: `{"role": "user", "content": "..."}` and so on, the oldest first."""

REPLACEMENT = "\ufffd"
"""What incomplete or invalid bytes decode to."""

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of `transformers` with the few things that decoding needs.

    Attributes:
      hf: the tokenizer itself.
      own_template: a chat template given by the user, which then wins over the tokenizer's.
      byte_ids: tokens that stand for one byte each, of vocabularies with byte fallback.
      special_ids: tokens that have no text.
    """

    hf: Any
    own_template: str | None
    byte_ids: frozenset[int]
    special_ids: frozenset[int]

    @property
    def has_chat_template(self) -> bool:
        return bool(self.own_template or self.hf.chat_template)

    def encode(self, text: str) -> tuple[int, ...]:
        """A plain text as the tokenizer gives it to its model: with BOS where it adds one."""
        return tuple(self.hf(text).input_ids)

    def encode_chat(self, messages: Messages) -> tuple[int, ...]:
        """A conversation whose next turn is the model's.

        The tokenizer's template writes BOS itself where its model wants one. One that the user
        gave may leave it out, and then gets what any text gets.

        Raises:
          UserError: no template, or one that refuses these messages.
        """
        if not self.has_chat_template:
            raise UserError(
                "the tokenizer has no chat template: expected a single turn; give one turn a line, "
                "or a template with --set chat_template=..."
            )
        try:
            text = self.hf.apply_chat_template(
                list(messages),
                chat_template=self.own_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise UserError(
                f"the chat template cannot be filled in: {_first_line(error)}"
            ) from None
        starts_itself = str(text).startswith(self.hf.bos_token or "\0")
        adds_special = self.own_template is not None and not starts_itself
        return tuple(self.hf(text, add_special_tokens=adds_special).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out; nothing is cleaned up."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is not None:
            return backend.decode(list(ids), skip_special_tokens=True)
        return self.hf.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def token(self, token_id: int) -> str:
        """The vocabulary's name of one token, for tables."""
        return str(self.hf.convert_ids_to_tokens(token_id))


def load_tokenizer(folder: Path | None, chat_template: str | None = None) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory; None where it has no tokenizer files.

    Raises:
      UserError: files that are there and cannot be read.
    """
    if folder is None or not any((folder / name).is_file() for name in _FILES):
        return None
    for name in (*_FILES, "tokenizer_config.json"):
        check_not_pointer(folder / name)
    try:
        with quiet_transformers():
            hf = _load(folder)
    except Exception as error:  # tokenizer files are read by three libraries, each with its errors
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({_first_line(error)}); restore its files, or "
            "remove them and give prompt_tokens"
        ) from None
    special_ids = {i for i, token in hf.added_tokens_decoder.items() if token.special}
    return Tokenizer(hf, chat_template, _byte_ids(hf), frozenset(special_ids))


def _byte_ids(hf: Any) -> frozenset[int]:
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        return frozenset()
    ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return frozenset(i for i in ids if i is not None)


def _load(folder: Path) -> Any:
    from jspec.infer import sentencepiece

    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        model = sentencepiece.read_model(folder / "tokenizer.model")
        if model is not None:
            return sentencepiece.load_tokenizer(folder, model)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without advice on the terminal: jspec says what matters itself."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def import_transformers_without_torch() -> None:
    """Spares a second of start-up where torch is installed; tokenizers do not need it.

    For a process of our own only: `transformers` then believes for good that torch is missing.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python spells "not there"
    try:
        import transformers

        _ = transformers.AutoTokenizer
    finally:
        del sys.modules["torch"]


# --- text that grows -----------------------------------------------------------------------------


class TextStream:
    """The text of one answer while its tokens arrive.

    Tokens are taken one by one, so that neither the text nor where it stops depends on how many
    arrive at a time.

    Args:
      stop_ids: tokens that end the answer; they have no text.
      stops: texts that end the answer; they are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop_ids: Iterable[int], stops: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._silent_ids = tokenizer.special_ids | frozenset(stop_ids)
        self._stops = tuple(stops)
        self._longest_stop = max((len(stop) for stop in self._stops), default=0)
        self._n_tokens = 0
        # Tokens that have text; that of the first `_read` of them cannot change any more.
        self._ids: list[int] = []
        self._settled = ""
        # Decoded again with every token: `_ids[_anchor:]`, which starts with `_prefix`.
        self._anchor, self._read, self._prefix = 0, 0, ""
        # Text of all tokens, and how much of it was handed out.
        self._text, self._n_shown = "", 0
        self._keep: int | None = None

    def advance(self, tokens: Sequence[int]) -> int | None:
        """Take all tokens so far; those seen before are skipped.

        Returns:
          How many tokens there are once a stop string is complete, else None.
        """
        for token in tokens[self._n_tokens :]:
            if self._keep is not None:
                break
            self._n_tokens += 1
            if token not in self._silent_ids:
                self._ids.append(token)
                self._extend()
        return self._keep

    def take(self) -> str:
        """New text that will stay: whole characters, and nothing that may begin a stop string."""
        if self._keep is not None:
            end = len(self._text)
        else:
            end = len(self._settled) - self._held_back()
        return self._hand_out(end)

    def finish(self) -> str:
        """The rest of the text; the answer has ended."""
        return self._hand_out(len(self._text))

    @property
    def text(self) -> str:
        """All of the text, the part included that cannot be shown yet."""
        return self._text

    def _hand_out(self, end: int) -> str:
        new = self._text[self._n_shown : end]
        self._n_shown = max(self._n_shown, end)
        return new

    def _extend(self) -> None:
        """Decode with the newest token.

        Decoding a whole answer for each token would be quadratic. A few tokens before the newest
        are enough context, if they have text of their own and end with a whole character.
        """
        window = self._tokenizer.decode(self._ids[self._anchor :])
        self._text = self._settled + window[len(self._prefix) :]
        self._look_for_stop()
        if self._keep is not None or window.endswith(REPLACEMENT):
            return
        if self._ids[-1] in self._tokenizer.byte_ids:
            return  # one more byte may turn the whole run of bytes into something else
        self._settled = self._text
        newest = self._tokenizer.decode(self._ids[self._read :])
        if newest:
            self._anchor, self._prefix = self._read, newest
        else:
            self._prefix = window
        self._read = len(self._ids)

    def _look_for_stop(self) -> None:
        start = max(0, len(self._settled) - self._longest_stop + 1)
        places = [self._text.find(stop, start) for stop in self._stops]
        found = [place for place in places if place >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._keep = self._n_tokens

    def _held_back(self) -> int:
        """Length of the longest end of the settled text that could begin a stop string."""
        for length in range(min(self._longest_stop - 1, len(self._settled)), 0, -1):
            end = self._settled[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
