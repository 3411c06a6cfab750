"""What `import jspec` offers: names and modules that the pages write, and nothing misspelt."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jspec
from jspec.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jspec"
FILES = (".jsonl", ".log", ".md", ".py", ".tar", ".yaml")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def dotted_names() -> set[str]:
    """`jspec.law.Mode.FULL` and the like in the pages; not what `python -m` runs, nor files."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"python -m jspec[.\w|]*|(?:from|import) jspec[.\w]*", "", text)
        found |= set(re.findall(r"(?<![\w/.-])jspec(?:\.[A-Za-z_]\w*)+(?![\w/*{])", text))
    return {name for name in found if not name.endswith(FILES)}


def test_every_name_that_the_pages_write_is_an_attribute():
    """In a fresh process, where nothing is imported but jspec itself."""
    names = sorted(dotted_names())
    assert "jspec.law.Mode.FULL" in names and len(names) > 20
    code = "import jspec\n" + "\n".join(names)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not ran.returncode, ran.stderr


@pytest.mark.parametrize("name", ["jspec.genrate", "jspec.models.shiped", "jspec.__wrapped__"])
def test_a_misspelt_name_is_an_attribute_error(name):
    package, _, attribute = name.rpartition(".")
    module = jspec if package == "jspec" else jspec.models
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{attribute}'"):
        getattr(module, attribute)


def test_a_module_that_cannot_be_imported_is_not_told_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "jspec.law", raising=False)
    monkeypatch.delattr(jspec, "law", raising=False)
    with pytest.raises(ModuleNotFoundError, match="jax"):
        _ = jspec.law


def test_type_checkers_see_the_names_and_no_getattr():
    """`tests/typed_names.py` says the same to pyright, in `make lint`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    blocks = {ast.unparse(node.test): node for node in tree.body if isinstance(node, ast.If)}
    typed = {
        alias.asname or alias.name: f"{node.module}"
        for node in ast.walk(blocks["TYPE_CHECKING"])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed.items() >= jspec._HOMES.items()
    assert list(jspec.__all__) == sorted(jspec._HOMES)
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(typed) - set(jspec._HOMES) >= packages
    assert not any(isinstance(node, ast.FunctionDef) and "attr" in node.name for node in tree.body)
    for path in PACKAGE.glob("*/__init__.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert "__getattr__" not in ast.unparse(node) or isinstance(node, ast.If), path


# --- python -m jspec -----------------------------------------------------------------------------


def test_all_commands_are_listed(capsys):
    assert main([]) == 0
    listed = re.findall(r"^  (\w+)  +\w", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(listed) == {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert list(COMMANDS) == listed


def test_a_misspelt_command_is_one_line(capsys):
    assert main(["trian"]) == 2
    out, error = capsys.readouterr()
    assert not out and error == "error: no command 'trian': did you mean 'train'?; see --help\n"


@pytest.mark.parametrize("arguments", [["--version"], *([name, "--version"] for name in COMMANDS)])
def test_the_version_is_told(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jspec"])
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert capsys.readouterr().out == f"jspec {jspec.__version__}\n"
