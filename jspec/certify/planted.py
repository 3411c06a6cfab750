"""What is planted, and the check that must see each fault.

Caught means that the named check, which passes without the fault, reports a problem with it. A
check that cannot run at all under a fault has not caught it: then the planting is broken.
In reading order: the check that a stranger's tokenizer is refused, the table, and `plant`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from jspec.certify import faults
from jspec.certify.records import Check, CheckResult
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.testing.models import tiny_target

THE_LAW = "law of trees"
THE_REJECTION = "law of rejection"
THE_REPLAY = "replay of trees"
THE_REFUSAL = "strangers are refused"

CAUGHT_BY = {
    "wrong_q": THE_REJECTION,
    "stale_kv": THE_REPLAY,
    "position_off_by_one": THE_REPLAY,
    "temperature_twice": THE_LAW,
    "temperature_after_top_p": THE_LAW,
    "noise_shared_between_positions": THE_LAW,
    "bonus_dropped": THE_REPLAY,
    "compaction_off_by_one": THE_REPLAY,
    "stop_token_in_draft_ignored": THE_REPLAY,
    "other_tokenizer_taken": THE_REFUSAL,
}
"""Every fault and the check whose business it is."""


def strangers_are_refused() -> CheckResult:
    """Draft models of another tokenizer, or another vocabulary, are a mistake that is named."""
    target = tiny_target(n_layers=1, width=16, mlp_width=16)
    words = [f"w{i}" for i in range(target.vocab_size)]
    shuffled = [*words[1:], words[0]]
    smaller = tiny_target(n_layers=1, width=16, mlp_width=16, vocab_size=53)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        ours = load_target(_checkpoint(Path(folder) / "target", target, words))
        same = _checkpoint(Path(folder) / "same", target, words)
        load_drafter("draft-model", same, target=ours)
        strangers = {
            "permuted tokens": _checkpoint(Path(folder) / "permuted", target, shuffled),
            "other words": _checkpoint(Path(folder) / "other", target, [w.upper() for w in words]),
            "a smaller vocabulary": _checkpoint(Path(folder) / "smaller", smaller, None),
        }
        for name, directory in strangers.items():
            try:
                load_drafter("draft-model", directory, target=ours)
            except UserError:
                continue
            problems.append(f"a drafter with {name} was taken")
    return CheckResult(problems=tuple(problems), note=f"{len(strangers)} strangers")


def _checkpoint(directory: Path, model: Target, words: list[str] | None) -> Path:
    """A tiny checkpoint, with a tokenizer of these words."""
    write_checkpoint(directory, model.params, model.model.config)
    if words is not None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, words[0]))
        tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def plant(name: str, probe: Callable[[], CheckResult], prepare: Callable[[], object]) -> Check:
    """A fault as a check: it passes where the probe sees the fault.

    Args:
      probe: the check that must see it.
      prepare: makes what the probe compares with, before anything is broken.
    """

    def run() -> CheckResult:
        prepare()
        with faults.FAULTS[name]():
            seen = probe()
        if not seen.problems:
            missed = f"{CAUGHT_BY[name]!r} did not see it"
            return CheckResult(n_tokens=seen.n_tokens, problems=(missed,))
        return CheckResult(n_tokens=seen.n_tokens, note=f"seen: {seen.problems[0]}")

    return Check(
        name=f"planted: {name}",
        tier="fault",
        covers=faults.MEANING[name],
        run=run,
        caught_by=CAUGHT_BY[name],
    )
