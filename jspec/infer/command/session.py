"""From a config to engines that answer: all that can be checked is checked before a weight is read.

In reading order: `Plan`, what is known without weights, and `Session`, which holds the loaded
models and gives its engines the room that the prompts need.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import jspec
from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.shipped import check_digest
from jspec.checkpoints.target import Target, abstract_target, check_causal, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import DrafterConfig, InferConfig
from jspec.console.log import Log
from jspec.console.memory import device_memory, memory_line, memory_warning
from jspec.console.prompts import Conversation, Reader
from jspec.drafters import LoadedDrafter, check_drafter, is_own, load_drafter
from jspec.errors import UserError
from jspec.hosts import agreed, check_all_devices, check_same
from jspec.infer.answers import Answerer
from jspec.infer.command.report import Turn
from jspec.infer.engine import Engine
from jspec.infer.memory import Memory, memory_of
from jspec.infer.prefill import SMALLEST_BUCKET, room_for
from jspec.infer.request import Request, cut_short
from jspec.sharding import make_mesh

AROUND_A_TURN = 32
"""More tokens than a chat template is likely to write around a turn."""

_DEFAULT_STOP_IDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before weights are read.

    Attributes:
      checkpoint: the target's.
      drafter: the drafter's checkpoint; of a drafter of one's own, the directory of its files.
      reader: makes prompt tokens; knows the longest text.
      turns: the first of every conversation, checked.
    """

    config: InferConfig
    checkpoint: Checkpoint
    drafter: Checkpoint | Path | None
    tokenizer: Tokenizer | None
    reader: Reader
    turns: tuple[Turn, ...]

    @property
    def essence(self) -> dict[str, Any]:
        """What must be the same on all hosts; where the files are need not be."""
        paths = {"target", "drafter_path", "drafters"}
        return {
            "versions": (jspec.__version__, jax.__version__),
            "config": self.config.model_dump(exclude=paths),
            "target": (self.checkpoint.config, weight_files(self.checkpoint)),
            "drafter": self.drafter and weight_files(self.drafter),
            "prompts": [(turn.tokens, turn.conversation.settings) for turn in self.turns],
        }

    def capacity(self, turns: Sequence[Turn]) -> int:
        """Tokens that the texts of these turns, and likely of those after them, need room for."""
        longest = max((self._longest(turn) for turn in turns), default=1)
        return room_for(longest, self.reader.max_length)

    def memory(self, mesh: Mesh, capacity: int) -> Memory:
        """What weights and caches will take, from configs alone; a drafter of one's own uncounted.

        Raises:
          UserError: a drafter that does not fit the target, as far as configs tell.
        """
        config = self.config
        target = abstract_target(self.checkpoint, dtype=config.dtype, mesh=mesh)
        if is_own(config.drafter):  # its load function may read weights: it is called once
            drafter = load_drafter("none", target=target)
        else:
            drafter = load_drafter(
                config.drafter, self.drafter, target=target, **config.drafter_options
            )
        return memory_of(target, drafter, batch_size=config.batch_size, capacity=capacity)

    def _longest(self, turn: Turn) -> int:
        """Tokens of the whole conversation, as far as can be told beforehand."""
        max_new_tokens = turn.conversation.settings.max_new_tokens
        later = turn.conversation.turns[turn.number :]
        following = sum(self.reader.count(text) + AROUND_A_TURN + max_new_tokens for text in later)
        return len(turn.tokens) + max_new_tokens + following


def make_plan(config: InferConfig, conversations: Sequence[Conversation]) -> Plan:
    """Find the models, read tokenizer and config, and make the tokens of all first turns.

    Raises:
      UserError: whatever is wrong with the config, the directories or the prompts.
    """
    assert config.target is not None
    check_drafter(config.drafter, config.drafter_options)
    # The drafter first, since it is the smaller download where something is missing.
    drafter = find_drafter_files(config)
    checkpoint = find_checkpoint(config.target)
    check_digest(checkpoint.files, config.target_digest)
    check_causal(checkpoint)
    longest = checkpoint.config.max_length
    limit = config.max_length or longest
    if limit > longest:
        raise UserError(
            f"max_length {limit} is more than the {longest} tokens that {checkpoint.where} was "
            "made for; lower it"
        )
    tokenizer = load_tokenizer(checkpoint.files, config.chat_template)
    vocab_size = checkpoint.config.vocab_size
    reader = Reader(tokenizer=tokenizer, max_length=limit, vocab_size=vocab_size)
    for each in conversations:
        reader.stops(each)
    turns = tuple(
        Turn(conversation=each, number=1, position=position, tokens=reader.tokens(each))
        for position, each in enumerate(conversations, start=1)
    )
    return Plan(
        config=config,
        checkpoint=checkpoint,
        drafter=drafter,
        tokenizer=tokenizer,
        reader=reader,
        turns=turns,
    )


class Session:
    """Loaded models and the engines that use them.

    Attributes:
      answerer: answers with the drafter.
      plain: answers without, for `--compare`; else None.
    """

    def __init__(self, plan: Plan, log: Log):
        config = plan.config
        mesh = make_mesh(**config.mesh.model_dump())
        capacity = plan.capacity(plan.turns)
        check_all_devices(mesh)
        memory, available = agreed(lambda: plan.memory(mesh, capacity)), device_memory()
        line = memory_line(memory, config, capacity, available)
        warning = memory_warning(memory, config, available)
        self.plan = plan
        self._log = log
        self._has_told_cut = False
        with log.status(f"loading {plan.checkpoint.where}"), log.unless_refused(line, warning):
            self._target, self._drafter = agreed(lambda: _load(plan, mesh))
            self.answerer = self._answerer(self._drafter, capacity)
            self.plain = self._answerer(None, capacity) if config.compare else None

    def requests(self, turns: Sequence[Turn]) -> list[Request]:
        """What the engines are asked; afterwards they have the room and are compiled for it."""
        requests = [self._request(turn) for turn in turns]
        cut = cut_short(requests, self.plan.reader.max_length)
        if cut and not self._has_told_cut:
            self._log.note(f"max_new_tokens is more than there is room for: {cut}")
            self._has_told_cut = True
        check_same(prompts=requests)
        capacity = self.plan.capacity(turns)
        for answerer, drafter in ((self.answerer, self._drafter), (self.plain, None)):
            if answerer is None:
                continue
            if answerer.engine.max_length < capacity:
                answerer.engine = self._engine(drafter, capacity)
            with self._log.status("compiling"):
                answerer.warm_up(requests)
                if self.plan.config.compare:
                    _run_once(answerer.engine, requests)
        return requests

    def _request(self, turn: Turn) -> Request:
        stops, settings = self.plan.reader.stops(turn.conversation), turn.conversation.settings
        return Request(
            tokens=turn.tokens,
            stop_ids=stops.all_ids(() if settings.ignore_eos else self._target.stop_ids),
            stops=stops.texts,
            **settings.sampling,
        )

    def _answerer(self, drafter: LoadedDrafter | None, capacity: int) -> Answerer:
        engine = self._engine(drafter, capacity)
        return Answerer(engine, self.plan.tokenizer)

    def _engine(self, drafter: LoadedDrafter | None, capacity: int) -> Engine:
        config, turns = self.plan.config, self.plan.turns
        most = max(
            (len(self.plan.reader.stops(turn.conversation).ids) for turn in turns), default=0
        )
        return Engine(
            self._target,
            drafter,
            batch_size=config.batch_size,
            max_length=capacity,
            max_stop_ids=max(len(self._target.stop_ids) + most, _DEFAULT_STOP_IDS),
            rule=config.rule,
            trace=config.trace,
        )


def _load(plan: Plan, mesh: Mesh) -> tuple[Target, LoadedDrafter]:
    config = plan.config
    target = load_target(plan.checkpoint, dtype=config.dtype, mesh=mesh)
    drafter = load_drafter(config.drafter, plan.drafter, target=target, **config.drafter_options)
    return target, drafter


def find_drafter_files(config: DrafterConfig) -> Checkpoint | Path | None:
    """A drafter's checkpoint; the files of a drafter of one's own need no `config.json`.

    Raises:
      UserError: neither a directory nor an id that can be fetched.
    """
    if not config.drafter_path:
        return None
    return (local_directory if is_own(config.drafter) else find_checkpoint)(config.drafter_path)


def directory_of(files: Checkpoint | Path) -> Path:
    """Where these files are."""
    return files.files if isinstance(files, Checkpoint) else files


def weight_files(files_of: Checkpoint | Path) -> list[tuple[str, int]]:
    """Names and bytes of a checkpoint's weights."""
    directory = directory_of(files_of)
    files = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    return sorted((file.name, file.stat().st_size) for file in files)


def _run_once(engine: Engine, requests: Sequence[Request]) -> None:
    """A short text outside the clock: whoever goes first would pay for cold caches."""
    for request in requests[:1]:
        few = min(request.max_new_tokens, SMALLEST_BUCKET)
        collections.deque(engine.run([dataclasses.replace(request, max_new_tokens=few)]), maxlen=0)
