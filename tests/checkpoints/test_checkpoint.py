"""A checkpoint is read once and handed on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.target import load_target
from jspec.infer.command.cli import main


@pytest.fixture
def reads(monkeypatch) -> Counter[Path]:
    """How often each file was read whole."""
    counts: Counter[Path] = Counter()
    read_bytes = Path.read_bytes

    def counting(path: Path) -> bytes:
        counts[path.resolve()] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    return counts


def test_a_run_parses_the_config_of_its_target_and_of_its_drafter_once(checkpoints, reads, capsys):
    drafter = ["--drafter", "draft-model", "--drafter-path", str(checkpoints.small)]
    prompt = ["--prompt", "the cat", "--max-new-tokens", "3", "--compare"]
    assert main(["--target", str(checkpoints.chat), *drafter, *prompt]) == 0
    for folder in (checkpoints.chat, checkpoints.small):
        assert reads[(folder / "config.json").resolve()] == 1, folder
    assert reads[(checkpoints.chat / "tokenizer_config.json").resolve()] == 1


def test_a_checkpoint_that_was_found_is_not_looked_for_again(checkpoints, reads):
    found = find_checkpoint(checkpoints.chat)
    target = load_target(found)
    assert target.checkpoint is found and find_checkpoint(found) is found
    tokenizer = found.tokenizer()
    assert tokenizer is not None and tokenizer.eos_id in target.stop_ids
    assert reads[(checkpoints.chat / "config.json").resolve()] == 1
