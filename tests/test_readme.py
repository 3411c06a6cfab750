"""What README and docs show runs: every Python block, and every command that needs no network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jspec.config import find_config
from jspec.infer.command.cli import main
from tests.support.directories import write_model, write_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RUN_ELSEWHERE = "docs/train.md"  # by tests/train/command/test_cli.py, which has a corpus
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
)
TARGET, SMALL = "path/to/llama", "path/to/small-llama"


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list:
    """The command lines of README, without `python -m jspec.infer`; SmolLM2's are marked."""
    text = "\n".join(blocks("README.md", "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    some = [line[3:] for line in lines if line[:3] == ["python", "-m", "jspec.infer"]]
    return [
        pytest.param(line, marks=[pytest.mark.smollm2] if "smollm2" in line else [])
        for line in some
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Tiny random checkpoints to stand where the documentation says a path."""
    root = tmp_path_factory.mktemp("models")
    for place, seed in ((TARGET, 0), (SMALL, 1)):
        write_model(root / place, seed=seed)
        write_tokenizer(root / place, None)
    return {place: str(root / place) for place in (TARGET, SMALL)}


@pytest.mark.parametrize("page", [page for page in PAGES if page != RUN_ELSEWHERE])
def test_python_blocks_run_in_order(page, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks(page, "python")
    assert code
    names: dict = {}
    for number, block in enumerate(code):
        if page == "README.md":
            names = {}
        place = compile(block.replace(TARGET, models[TARGET]), f"{page}:{number}", "exec")
        exec(place, names)


def test_readme_example_says_the_same_with_a_drafter(models, capsys):
    exec(blocks("README.md", "python")[0].replace(TARGET, models[TARGET]), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.endswith(("True", "False"))] == ["True"] * 2


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_run(arguments, models, capsys):
    here = [models.get(word, word) for word in arguments]
    assert not any("path/to" in word for word in here if word not in models.values())
    assert main(here) == 0
    assert capsys.readouterr().out.strip()


def test_commands_are_shown():
    assert len(commands()) >= 3


def test_named_configs_exist():
    text = (ROOT / "README.md").read_text()
    named = re.search(r"`--config (\w+)`, (.*?)\);", text, flags=re.DOTALL)
    assert named is not None
    for name in [named[1], *re.findall(r"`(\w+)`", named[2])]:
        assert find_config(name).is_file()
