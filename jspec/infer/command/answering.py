"""The engines that answer prompts, with the room that these need."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from jspec.config import DrafterConfig, InferConfig
from jspec.console.log import Log
from jspec.console.memory import device_memory, memory_line, memory_warning
from jspec.console.prompts import Conversation
from jspec.console.reader import Turn
from jspec.console.session import Models, Session, find_models
from jspec.hosts import agreed, check_same
from jspec.infer.answers import Answerer
from jspec.infer.engine import Engine
from jspec.infer.prefill import SMALLEST_BUCKET, room_for
from jspec.infer.request import Request, cut_short
from jspec.sharding import make_mesh

AROUND_A_TURN = 32
"""More tokens than a chat template is likely to write around a turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Models and prompts, all checked before weights are read.

    Attributes:
      turns: the first of every conversation.
    """

    models: Models
    turns: tuple[Turn, ...]

    @property
    def config(self) -> InferConfig:
        return self.models.config

    def capacity(self, turns: Sequence[Turn]) -> int:
        """Tokens that the texts of these turns, and likely of those after them, need room for."""
        longest = max((self._longest(turn) for turn in turns), default=1)
        return room_for(longest, self.models.reader.max_length)

    def _longest(self, turn: Turn) -> int:
        """Tokens of the whole conversation, as far as can be told beforehand."""
        max_new_tokens = turn.conversation.settings.max_new_tokens
        later, count = turn.conversation.turns[turn.number :], self.models.reader.count
        following = sum(count(text) + AROUND_A_TURN + max_new_tokens for text in later)
        return len(turn.tokens) + max_new_tokens + following


def find_questions(config: InferConfig, conversations: Sequence[Conversation]) -> Questions:
    """Find the models, and make the tokens of all first turns.

    Raises:
      UserError: whatever is wrong with the config, the directories or the prompts.
    """
    drafter = DrafterConfig(**{name: getattr(config, name) for name in DrafterConfig.model_fields})
    models = find_models(config, {config.drafter: drafter})
    return Questions(models=models, turns=models.reader.first_turns(conversations))


class Answering:
    """The loaded models, and the engines that answer with them.

    Attributes:
      answerer: answers with the drafter.
      plain: answers without, for `--compare`; else None.
    """

    def __init__(self, questions: Questions, log: Log):
        self.questions = questions
        self._log = log
        self._has_told_cut = False
        models, config = questions.models, questions.config
        capacity = questions.capacity(questions.turns)
        mesh = make_mesh(**config.mesh.model_dump())
        memory = agreed(lambda: models.memory(config.drafter, mesh, capacity))
        available = device_memory()
        line = memory_line(memory, config, capacity, available)
        warning = memory_warning(memory, available)
        where = models.checkpoint.where
        with log.status(f"loading {where}"), log.unless_refused(line, warning):
            self._session = Session(models, mesh)
            self.answerer = self._answerer(config.drafter, capacity)
            self.plain = self._answerer(None, capacity) if config.compare else None

    def requests(self, turns: Sequence[Turn]) -> list[Request]:
        """What the engines are asked; afterwards they have the room and are compiled for it."""
        requests = [self._request(turn) for turn in turns]
        cut = cut_short(requests, self.questions.models.reader.max_length)
        if cut and not self._has_told_cut:
            self._log.note(f"max_new_tokens is more than there is room for: {cut}")
            self._has_told_cut = True
        check_same(prompts=requests)
        config, capacity = self.questions.config, self.questions.capacity(turns)
        for answerer, drafter in ((self.answerer, config.drafter), (self.plain, None)):
            if answerer is None:
                continue
            if answerer.engine.max_length < capacity:
                answerer.engine = self._engine(drafter, capacity)
            with self._log.status("compiling"):
                answerer.warm_up(requests)
                if config.compare:
                    _run_once(answerer.engine, requests)
        return requests

    def _request(self, turn: Turn) -> Request:
        settings = turn.conversation.settings
        stops = self.questions.models.reader.stops(turn.conversation)
        return Request(
            tokens=turn.tokens,
            stop_ids=stops.all_ids(() if settings.ignore_eos else self._session.target.stop_ids),
            stops=stops.texts,
            **settings.sampling,
        )

    def _answerer(self, drafter: str | None, capacity: int) -> Answerer:
        return Answerer(self._engine(drafter, capacity), self.questions.models.reader.tokenizer)

    def _engine(self, drafter: str | None, capacity: int) -> Engine:
        config, reader = self.questions.config, self.questions.models.reader
        stops = [reader.stops(turn.conversation) for turn in self.questions.turns]
        return self._session.engine(
            drafter,
            batch_size=config.batch_size,
            max_length=capacity,
            more_stop_ids=max((len(each.ids) for each in stops), default=0),
            trace=config.trace,
        )


def _run_once(engine: Engine, requests: Sequence[Request]) -> None:
    """A short text outside the clock: whoever goes first would pay for cold caches."""
    for request in requests[:1]:
        few = min(request.max_new_tokens, SMALLEST_BUCKET)
        collections.deque(engine.run([dataclasses.replace(request, max_new_tokens=few)]), maxlen=0)
