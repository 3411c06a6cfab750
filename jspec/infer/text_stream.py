"""Text that grows token by token: what can be shown already, and where a stop string ends it.

The text of an answer is what the tokenizer decodes from its new tokens alone, special tokens and
the stop token left out, cut before the first stop string.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What incomplete or invalid bytes decode to."""


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
