"""`jspec.generate` and `jspec.stream`: prompts in, text out, for use from Python."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from jspec.arguments import plain, shown, truth, whole_number
from jspec.checkpoints.target import Target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import ROUNDS_PER_CHUNK, Settings, resolve
from jspec.drafters import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.answers import Answerer
from jspec.infer.engine import Engine, check_models
from jspec.infer.messages import check_messages, to_be_answered
from jspec.infer.prefill import room_for
from jspec.infer.request import Request, cut_short
from jspec.infer.results import Generation, Piece, whole_answers
from jspec.infer.stops import find_stops
from jspec.law import Rule

Prompt = str | Sequence[int] | Sequence[dict[str, str]]
"""A text, token ids, or a conversation of `{"role": ..., "content": ...}`."""

_logger = logging.getLogger(__name__)


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `stream`, which say what they mean and what they are by default."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    sample: int
    stop: str | Sequence[str]
    stop_ids: int | Sequence[int]
    ignore_eos: bool
    max_length: int | None
    batch_size: int
    rounds_per_chunk: int
    rule: str | Rule
    trace: bool
    chat_template: str | Path | None


def generate(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    drafter: LoadedDrafter | None = None,
    max_new_tokens: int,
    **options: Unpack[GenerateOptions],
) -> list[Generation]:
    """Answer some prompts, in their order. The text does not depend on the drafter.

    Args:
      target: from `jspec.load_target`.
      prompts: a text is continued as it stands, with BOS where the tokenizer adds one; token ids
        are taken as they are; a conversation goes through the chat template.
      drafter: from `jspec.load_drafter`; None decodes plainly.
      max_new_tokens: the stop token included.
      temperature: 0, the default, is greedy; else from 0.01 to 1,000,000.
      top_k: keep the k likeliest tokens; 0, the default, is off.
      top_p: keep the smallest set of this mass; 1, the default, is off.
      min_p: keep tokens of at least this share of the likeliest one's probability; 0, the default,
        is off.
      seed: with `sample`, names the noise: one prompt, seed and sample are one text. Default 0.
      sample: number of the request under this seed, by default 0.
      stop: texts that end an answer and are left out of it; special tokens too, by their names.
      stop_ids: tokens that end an answer, beside the target's own.
      ignore_eos: go on past the target's stop tokens.
      max_length: most tokens of a text, prompt included; by default the target's context. A text
        that reaches it ends there, however many new tokens were asked for.
      batch_size: rows decoded together, by default 1.
      rounds_per_chunk: rounds a dispatch, by default 8. Between them text is streamed and rows are
        refilled; fewer make both sooner, and the host busier.
      rule: "walk", the default, or "rejection", under which the text depends on the drafter.
      trace: keep where every token came from.
      chat_template: Jinja or a file of it, where the tokenizer has none or another is wanted.

    Raises:
      UserError: anything that cannot be done, before anything runs.
    """
    answerer, requests = _prepare(
        target, prompts, drafter=drafter, max_new_tokens=max_new_tokens, **options
    )
    return whole_answers(answerer.answer(requests, in_pieces=False), len(requests))


def stream(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    drafter: LoadedDrafter | None = None,
    max_new_tokens: int,
    **options: Unpack[GenerateOptions],
) -> Iterator[Piece]:
    """Answer as `generate` does, with the same options, while the text is committed.

    Yields:
      Pieces: new text and tokens of one of the prompts; its last piece has the whole answer. Text
      that may still change or begin a stop string is held back.
    """
    answerer, requests = _prepare(
        target, prompts, drafter=drafter, max_new_tokens=max_new_tokens, **options
    )
    return answerer.answer(requests)


def _prepare(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    drafter: LoadedDrafter | None = None,
    ignore_eos: bool = False,
    max_length: int | None = None,
    batch_size: int = 1,
    rounds_per_chunk: int = ROUNDS_PER_CHUNK,
    rule: str | Rule = "walk",
    trace: bool = False,
    chat_template: str | Path | None = None,
    **settings: Any,
) -> tuple[Answerer, list[Request]]:
    """Check everything, then compile what the requests need."""
    check_models(target, drafter)
    prompts = plain(prompts)
    is_single = isinstance(prompts, str | bytes | Mapping)
    if is_single or not isinstance(prompts, Sequence):
        what_to_do = "wrap it: [x]" if is_single else "make it one: list(x)"
        raise UserError(
            f"prompts: expected a list of prompts, given {shown(prompts)}; {what_to_do}"
        )
    ignore_eos, trace = truth("ignore_eos", ignore_eos), truth("trace", trace)
    asked = resolve(Settings, [("", settings)])
    tokenizer = cached_tokenizer(target.path, _template(chat_template))
    stops = find_stops(asked.stop, asked.stop_ids, tokenizer, target.vocab_size)
    stop_ids = stops.all_ids(() if ignore_eos else target.stop_ids)
    requests = [
        Request(
            tokens=_tokens(prompt, i, tokenizer),
            stop_ids=stop_ids,
            stops=stops.texts,
            **asked.sampling,
        )
        for i, prompt in enumerate(prompts)
    ]
    limit = target.max_length if max_length is None else whole_number("max_length", max_length)
    longest = max((len(r.tokens) + r.max_new_tokens for r in requests), default=1)
    engine = Engine(
        target,
        drafter,
        batch_size=batch_size,
        max_length=room_for(longest, limit) if limit <= target.max_length else limit,
        max_stop_ids=len(stop_ids),
        rule=rule,
        trace=trace,
        rounds_per_chunk=rounds_per_chunk,
    )
    for request in requests:
        engine.check(request)
    cut = cut_short(requests, engine.max_length)
    if cut:
        _logger.warning(f"max_new_tokens is more than there is room for: {cut}")
    answerer = Answerer(engine, tokenizer)
    answerer.warm_up(requests)
    return answerer, requests


def _template(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Path):
        return str(given)
    raise UserError(f"chat_template: expected Jinja or a file of it, given {shown(given)}")


@functools.lru_cache(maxsize=4)
def cached_tokenizer(folder: Path | None, chat_template: str | None) -> Tokenizer | None:
    """Tokenizer files are read once for many calls of `generate`."""
    return load_tokenizer(folder, chat_template)


def _tokens(prompt: Any, index: int, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """A prompt of any kind as tokens."""
    where, prompt = f"prompts[{index}]", plain(prompt)
    if isinstance(prompt, str):
        return _text_tokens(prompt, where, tokenizer)
    if isinstance(prompt, int | bytes | Mapping):
        what_to_do = {
            int: "a single prompt of token ids is [ids]",
            bytes: "decode it",
        }.get(type(prompt), "a single conversation is [messages]")
        raise UserError(
            f"{where}: expected a text, token ids or a list of messages, given {shown(prompt)}; "
            f"{what_to_do}"
        )
    items = list(prompt) if isinstance(prompt, Iterable) else [None]
    if items and all(isinstance(item, Mapping) for item in items):
        return _chat_tokens(items, where, tokenizer)
    items = [plain(item) for item in items]
    if not all(type(item) is int for item in items):
        raise UserError(
            f"{where}: expected a text, token ids or a list of messages, given {shown(prompt)}"
        )
    return tuple(items)


def _text_tokens(text: str, where: str, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if tokenizer is None:
        raise UserError(f"{where}: the target's directory has no tokenizer; give token ids")
    if not text:
        raise UserError(f"{where}: the text is empty; give some, or token ids such as BOS")
    try:
        return tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _chat_tokens(messages: list, where: str, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if tokenizer is None:
        raise UserError(f"{where}: the target's directory has no tokenizer; give token ids")
    checked = check_messages(messages, where)
    asked = to_be_answered(checked)
    if not asked:
        raise UserError(f"{where}: expected some message of the user to be answered")
    if len(asked) < len(checked):
        _logger.warning(
            f"{where}: the assistant's last message is left out, as it is what is to be answered"
        )
    return tokenizer.encode_chat(asked)
