"""Planted faults: each breaks one thing on purpose, so that a check can be seen to catch it.

Caught means that the named check, which passes without the fault, reports a problem with it. A
check that cannot run at all under a fault has not caught it: then the planting is broken.
In reading order: `Fault`, the table, and the check that a stranger's tokenizer is refused, which is
here because no other can see the last fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jspec import law
from jspec.certify.certificate import Check, CheckResult
from jspec.checkpoints import beside
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.infer import round as rounds
from jspec.ops import cache as cache_ops
from jspec.state import StopReason, replace
from jspec.testing.models import tiny_target
from jspec.verify import rejection, walk_rule

THE_LAW = "law of trees"
THE_REJECTION = "law of rejection"
THE_REPLAY = "replay of trees"
THE_REFUSAL = "strangers are refused"

_FAST = "jax_disable_most_optimizations"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A function of the library that is replaced by a wrong one.

    Attributes:
      covers: what it does, one line.
      module, attribute: where the right function is.
      wrong: makes the wrong one from the right one.
      caught_by: the check whose business it is.
    """

    name: str
    covers: str
    module: ModuleType
    attribute: str
    wrong: Callable[[Callable[..., Any]], Callable[..., Any]]
    caught_by: str

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Break the library in here. Compiled programs are dropped before and after."""
        # Faults are gross: their programs are compiled fast, and nothing else sees them.
        before = jax.config.read(_FAST)
        jax.clear_caches()
        jax.config.update(_FAST, True)
        right = getattr(self.module, self.attribute)
        try:
            with mock.patch.object(self.module, self.attribute, self.wrong(right)):
                yield
        finally:
            jax.config.update(_FAST, before)
            jax.clear_caches()

    def check(self, probe: Callable[[], CheckResult], prepare: Callable[[], object]) -> Check:
        """Make the check that passes where the probe sees the fault.

        Args:
          probe: what `caught_by` runs.
          prepare: makes what the probe compares with, before anything is broken.
        """

        def run() -> CheckResult:
            prepare()
            with self.planted():
                seen = probe()
            if not seen.problems:
                missed = f"{self.caught_by!r} did not see it"
                return CheckResult(n_tokens=seen.n_tokens, problems=(missed,))
            return CheckResult(n_tokens=seen.n_tokens, note=f"seen: {seen.problems[0]}")

        return Check(f"planted: {self.name}", "fault", self.covers, run, self.caught_by)


FAULTS: dict[str, Fault] = {}
"""By name."""


def _fault(module: ModuleType, attribute: str, *, caught_by: str):
    """Put a fault into the table; its docstring says what it does."""

    def register(wrong: Callable[[Any], Any]):
        covers = (wrong.__doc__ or "").strip().rstrip(".")
        FAULTS[wrong.__name__] = Fault(wrong.__name__, covers, module, attribute, wrong, caught_by)
        return wrong

    return register


@_fault(rejection, "_draft_probs", caught_by=THE_REJECTION)
def wrong_q(right):
    """The rejection rule compares with another row than the one that was drawn from."""

    def wrong(draft, node, vocabulary):
        probs = jnp.exp(draft.logprobs)[:, node]
        return jnp.square(probs) / jnp.sum(jnp.square(probs), axis=1, keepdims=True)

    return wrong


@_fault(rounds, "keep_accepted", caught_by=THE_REPLAY)
def stale_kv(right):
    """After a rejection the keys and values of refused nodes stay in the text's slots."""
    return lambda verified, context, size: verified.cache


@_fault(rounds, "tree_block", caught_by=THE_REPLAY)
def position_off_by_one(right):
    """Drafted nodes are rotated one position too far."""

    def wrong(prefix, ancestors, depth, new=None):
        return right(prefix, ancestors, jnp.where(depth > 0, depth + 1, depth), new)

    return wrong


@_fault(law, "processed", caught_by=THE_LAW)
def temperature_twice(right):
    """Logits are divided by the temperature once more."""

    def wrong(logits, sampling, mode, **options):
        warm = jnp.where(sampling.temperature == 0, 1, sampling.temperature)[:, None]
        return right(logits / warm.astype(logits.dtype), sampling, mode, **options)

    return wrong


@_fault(law, "keep", caught_by=THE_LAW)
def temperature_after_top_p(right):
    """The filters see the logits before the temperature is applied to them."""

    def wrong(scaled, sampling, **options):
        warm = jnp.where(sampling.temperature == 0, 1, sampling.temperature)[:, None]
        return right(scaled * warm.astype(scaled.dtype), sampling, **options)

    return wrong


@_fault(law, "position_keys", caught_by=THE_LAW)
def noise_shared_between_positions(right):
    """Every position draws from the key of position 0."""

    def wrong(seed, sample, position, stream):
        return right(seed, sample, jnp.zeros_like(position), stream)

    return wrong


@_fault(rounds, "emit", caught_by=THE_REPLAY)
def bonus_dropped(right):
    """The target's own token is counted but the last accepted one is written in its place."""

    def wrong(context, verdict):
        last = jnp.maximum(verdict.n_accepted - 1, 0)[:, None]
        kept = jnp.take_along_axis(verdict.tokens, last, axis=1)
        steps = jnp.arange(verdict.tokens.shape[1], dtype=jnp.int32)[None, :]
        is_own = (steps == verdict.n_accepted[:, None]) & (verdict.n_accepted > 0)[:, None]
        return right(context, replace(verdict, tokens=jnp.where(is_own, kept, verdict.tokens)))

    return wrong


@_fault(cache_ops, "compact", caught_by=THE_REPLAY)
def compaction_off_by_one(right):
    """The accepted path lands one slot late, behind a second copy of its root."""

    def wrong(array, start, path, window):
        late = jnp.concatenate([path[:, :1], path[:, :-1]], axis=1)
        return right(array, start, late, window)

    return wrong


@_fault(walk_rule, "reason_to_stop", caught_by=THE_REPLAY)
def stop_token_in_draft_ignored(right):
    """The walk goes down through an accepted stop token."""

    def wrong(token, is_bad, text_length, sampling):
        reason = right(token, is_bad, text_length, sampling)
        return jnp.where(reason == StopReason.STOP_TOKEN, StopReason.NONE.value, reason)

    return wrong


@_fault(beside, "check_same_tokenizer", caught_by=THE_REFUSAL)
def other_tokenizer_taken(right):
    """A drafter whose token ids mean something else is not refused."""
    return lambda target, drafter: None


def strangers_are_refused() -> CheckResult:
    """Draft models of another tokenizer, or another vocabulary, are a mistake that is named."""
    target = tiny_target(n_layers=1, width=16, mlp_width=16)
    words = [f"w{i}" for i in range(target.vocab_size)]
    smaller = tiny_target(n_layers=1, width=16, mlp_width=16, vocab_size=53)
    strangers = {
        "permuted tokens": (target, [*words[1:], words[0]]),
        "other words": (target, [word.upper() for word in words]),
        "a smaller vocabulary": (smaller, None),
    }
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        ours = load_target(_checkpoint(Path(folder) / "target", target, words))
        same = _checkpoint(Path(folder) / "same", target, words)
        load_drafter("draft-model", same, target=ours)
        for name, (model, its_words) in strangers.items():
            directory = _checkpoint(Path(folder) / name, model, its_words)
            try:
                load_drafter("draft-model", directory, target=ours)
            except UserError:
                continue
            problems.append(f"a drafter with {name} was taken")
    return CheckResult(problems=tuple(problems), note=f"{len(strangers)} strangers")


def _checkpoint(directory: Path, model: Target, words: list[str] | None) -> Path:
    """Write a tiny checkpoint, with a tokenizer of these words."""
    write_checkpoint(directory, model.params, model.model.config)
    if words is not None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, words[0]))
        tokenizer.save(str(directory / "tokenizer.json"))
    return directory
