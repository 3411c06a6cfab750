"""What the documentation names is there: links, files, configs, commands with their flags, API."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import jspec
from jspec.config import find_config, read_yaml
from jspec.drafters import NAMES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("experiments", "configs", "docs", "jspec", "weights")


def texts(*suffixes: str) -> list[Path]:
    """Files of the repository with one of these suffixes, those of the tests left out."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in (*ROOT.glob("*"), *sorted(inside)) if path.suffix in suffixes]


START = "python -m jspec"
IN_PROSE = {"python -m jspec", "python -m jspec.infer --hosts"}
"""Commands that are named without what they need."""

PAGES = texts(".md")


# --- links and files -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page: its headings, as GitHub writes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_named_files_exist():
    folders = "|".join((*FOLDERS, "tests", "typings"))
    named = re.compile(rf"(?<![\w./~$-])(?:{folders})/[\w./-]*\w")
    for path in texts(".md", ".py", ".yaml"):
        for name in named.findall(path.read_text(encoding="utf-8")):
            on_a_pod = name.startswith("jspec/") and name.endswith((".log", ".jsonl"))
            assert on_a_pod or "NAME" in name or (ROOT / name).exists(), f"{path}: {name}"


def test_the_index_lists_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.is_relative_to(DOCS) and page.name != "index.md":
            assert f"({page.relative_to(DOCS)})" in index, page


def test_the_api_pages_have_every_public_name():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    for name in jspec.__all__:
        assert re.search(rf"\bjspec\.{name}\b", text), name


# --- commands ------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every `python -m jspec...` of pages and of the heads of configs, each on one line."""
    found = []
    for path in texts(".md", ".yaml"):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"\n#     +", " ", text) if path.suffix == ".yaml" else text
        lines = [line for line in text.splitlines() if "`" not in line]
        if path.suffix == ".yaml":
            lines = [line for line in lines if line.startswith("#   python ")]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
        found += [line[line.index(START) :] for line in (*lines, *spans) if START in line]
    return sorted(set(found) - IN_PROSE)


def words(command: str) -> list[str]:
    """Its words, up to what the shell does with it, without what stands for more."""
    plain = re.split(r" (?:[12]?>>?|\||&&?|#|;) ?", command)[0]
    if plain.count("'") % 2:  # the quote around it closes behind it
        plain = plain.rpartition("'")[0]
    return shlex.split(plain.replace(" ... ", " "))


def parser_of(module: str):
    """The module that parses the flags of `python -m MODULE`, None where it takes none."""
    for name in (f"{module}.command.cli", f"{module}.cli", module):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if hasattr(found, "make_parser"):
            return found
    return None


def test_commands_are_found():
    assert len(commands()) > 50


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    _, _, module, *arguments = words(command)
    if any("|" in word or word.startswith("[") for word in arguments):  # a synopsis
        return
    cli = parser_of(module)
    assert cli is not None, module
    args = cli.make_parser().parse_args(arguments)
    config = getattr(args, "config", None)
    if config is None or config == "NAME" or config.endswith(".yaml"):
        return
    assert find_config(config).is_file()
    given = getattr(args, "drafters", None) or getattr(args, "drafter", None) or "none"
    known = {*NAMES, *(read_yaml(find_config(config)).get("drafters") or {})}
    assert all(name in known or ":" in name for name in given.split(","))  # package.module:load
    if module in ("jspec.infer", "jspec.train"):
        cli.make_config(args)  # fields after --set are there, and take such values
