"""From conversations to the tokens of their turns.

In reading order: `Turn`, and `Reader`, which makes its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.console.prompts import Conversation
from jspec.errors import UserError
from jspec.infer.stops import Stops, find_stops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One prompt, to be answered or answered already.

    Attributes:
      conversation: it belongs to.
      number: 1 for the first turn.
      position: of its conversation among all, from 1.
      tokens: its whole prompt, earlier turns included.
    """

    conversation: Conversation
    number: int
    position: int
    tokens: tuple[int, ...]

    @property
    def text(self) -> str | None:
        """What the user said in this turn; None where tokens were given."""
        turns = self.conversation.turns
        return turns[self.number - 1] if turns else None

    @property
    def name(self) -> str:
        several = f", turn {self.number}" if self.conversation.n_turns > 1 else ""
        return f"{self.conversation.id}{several}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Makes the prompt tokens of a turn.

    Attributes:
      tokenizer: None where the checkpoint has none.
      max_length: longest text in tokens, one new token included.
      vocab_size: of the target.
    """

    tokenizer: Tokenizer | None
    max_length: int
    vocab_size: int

    def tokens(self, conversation: Conversation) -> tuple[int, ...]:
        """The prompt of the first turn, or of a prompt given as tokens; it is sure to fit.

        Raises:
          UserError: naming file and line.
        """
        tokens = conversation.tokens or self.next_tokens(conversation, ())
        self._check(tokens, conversation.where)
        return tokens

    def next_tokens(self, conversation: Conversation, answers: Sequence[str]) -> tuple[int, ...]:
        """The prompt of the turn after some answers, which may have outgrown the context.

        Raises:
          UserError: naming file and line.
        """
        try:
            return self._encode(conversation, answers)
        except UserError as error:
            raise UserError(f"{conversation.where}: {error}") from None

    def _encode(self, conversation: Conversation, answers: Sequence[str]) -> tuple[int, ...]:
        if self.tokenizer is None:
            raise UserError(
                "the target's directory has no tokenizer files; add them, or give prompt_tokens "
                "in a --prompts file"
            )
        settings, history = conversation.settings, list(conversation.history)
        is_single = conversation.n_turns == 1 and not history
        if not is_single and settings.raw:
            raise UserError("several turns need the chat template; leave out --raw")
        if settings.system and not settings.raw and not self.tokenizer.has_chat_template:
            raise UserError(
                "a system message needs a chat template, and the tokenizer has none; drop it"
            )
        if is_single and (settings.raw or not self.tokenizer.has_chat_template):
            return self.tokenizer.encode(conversation.turns[0])
        system = [{"role": "system", "content": settings.system}] if settings.system else []
        messages = [*system, *history]
        for i, turn in enumerate(conversation.turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": turn})
            if i < len(answers):
                messages.append({"role": "assistant", "content": answers[i]})
        return self.tokenizer.encode_chat(messages)

    def _check(self, tokens: tuple[int, ...], where: str) -> None:
        if not tokens:
            raise UserError(f"{where}: the prompt has no tokens; give it some text")
        outside = [token for token in tokens if token >= self.vocab_size]
        if outside:
            raise UserError(
                f"{where}: token id {outside[0]} is not in the vocabulary; ids go from 0 to "
                f"{self.vocab_size - 1}"
            )
        if not self.has_room(tokens):
            raise UserError(
                f"{where}: the prompt has {len(tokens)} tokens and the text may have "
                f"{self.max_length}, at least one of them new; shorten it, or raise --max-length "
                "as far as the model goes"
            )

    def first_turns(self, conversations: Sequence[Conversation]) -> tuple[Turn, ...]:
        """The first turn of each conversation; stops and tokens of all of them are checked.

        Raises:
          UserError: naming file and line.
        """
        for each in conversations:
            self.stops(each)
        return tuple(
            Turn(conversation=each, number=1, position=position, tokens=self.tokens(each))
            for position, each in enumerate(conversations, start=1)
        )

    def stops(self, conversation: Conversation) -> Stops:
        """What ends its answers, beside the target's own stop tokens.

        Raises:
          UserError: naming file and line.
        """
        settings = conversation.settings
        try:
            return find_stops(settings.stop, settings.stop_ids, self.tokenizer, self.vocab_size)
        except UserError as error:
            raise UserError(f"{conversation.where}: {error}") from None

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer.encode(text)) if self.tokenizer else 0

    def has_room(self, tokens: Sequence[int]) -> bool:
        """Whether at least one new token fits."""
        return len(tokens) < self.max_length
