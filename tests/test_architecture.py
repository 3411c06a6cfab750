"""The house stays in order: who may import whom, what the engine may know, how large files get."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jspec.drafters import NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jspec"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
LEVELS = (
    ("arguments", "errors", "lazy", "ngrams", "provenance", "records", "text_files", "versions"),
    ("ops",),
    ("config", "hosts", "law", "sharding", "state"),
    ("models",),
    ("checkpoints",),
    ("drafters", "verify"),
    ("infer",),
    ("train",),
    ("console",),
    ("aot", "bench", "infer.command", "plan", "train.command"),
    ("testing",),
    ("certify",),
    ("__main__",),
)
"""From the ground up: a part imports from the levels below it, and from itself."""

STRANGERS = {("drafters", "verify"), ("verify", "drafters")}
"""They meet in `infer`."""

COMMAND_LINES = ("__main__.py", "cli.py")
"""These may reach upward, though not into `testing`, which serves the tests and the certificate."""

HEAVY = {"datasets", "jinja2", "matplotlib", "torch", "transformers"}
LINKS = {"infer", "models", "train"}
LONGEST_FILE = 400

PLANNED = ("falcon", "easyspec", "diffuspec", "eagle", "medusa", "lookahead")


def part_of(path: Path) -> str:
    """The part of the house that a module belongs to: `jspec/ops/rope.py` is in `ops`."""
    return part_named(path.relative_to(PACKAGE).with_suffix("").parts)


def part_named(words: Sequence[str]) -> str:
    """A folder or file of the package; the commands inside `infer` and `train` are their own."""
    return ".".join(words[: 2 if tuple(words[1:2]) == ("command",) else 1])


def level_of(part: str) -> int:
    """An unknown name, such as one that only `jspec` itself exports, is above everything."""
    return next((i for i, parts in enumerate(LEVELS) if part in parts), len(LEVELS))


def imports_of(node: ast.AST) -> list[tuple[int, str]]:
    """What one statement imports: line and full name. A tests' own relative import is nothing."""
    if isinstance(node, ast.Import):
        return [(node.lineno, alias.name) for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return []


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [found for node in ast.walk(tree) for found in imports_of(node)]


def imports_at_once(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Imports that run with the module: not those in functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        is_later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_later or isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield from imports_of(child)
        yield from imports_at_once(child)


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Parts of jspec that a file imports, with the line."""
    for line, name in imports(path):
        words = name.split(".")
        if words[0] == "jspec" and len(words) > 1:
            yield line, part_named(words[1:])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_has_its_level():
    known = {part for parts in LEVELS for part in parts}
    assert {part_of(path) for path in MODULES} <= known


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downward(path):
    part = part_of(path)
    wrong = []
    for line, other in imported_parts(path):
        is_upward = level_of(other) > level_of(part) and path.name not in COMMAND_LINES
        is_testing = other == "testing" and part not in ("testing", "certify")
        if is_upward or is_testing or (part, other) in STRANGERS:
            wrong.append(f"line {line}: {part} imports {other}")
    assert not wrong


def module_of(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count, and those of a package's submodules through the package."""
    files = {module_of(path): path for path in [*MODULES, PACKAGE / "__init__.py"]}
    needs = {}
    for name, path in files.items():
        found = (full for _, full in imports(path))
        needs[name] = {
            next((n for n in (f, f.rpartition(".")[0]) if n in files), "") for f in found
        }
    while free := [name for name, others in needs.items() if not others & needs.keys() - {name}]:
        for name in free:
            del needs[name]
    assert not needs


def test_class_names_are_unique_in_the_package():
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name_of(path))
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_state_stands_alone_beside_law():
    parts = {other for _, other in imported_parts(PACKAGE / "state.py")}
    assert parts <= {"errors", "ops"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(line, name) for line, name in imports_at_once(tree) if name.split(".")[0] in HEAVY]
    assert not found


def test_nothing_imports_through_the_links_at_the_top():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    wrong = [
        f"{name_of(path)}:{line}"
        for path in files
        for line, name in imports(path)
        if name.split(".")[0] in LINKS
    ]
    assert not wrong


def spellings(name: str) -> re.Pattern[str]:
    """A drafter's name as a name, a module, a class or a constant; not as words of a sentence."""
    words = name.split("-")
    return re.compile(
        f"{'[-_]'.join(words)}|{''.join(words)}|{''.join(word.title() for word in words)}",
        re.IGNORECASE,
    )


DRAFTER_NAMES = tuple(name for name in NAMES if name != "none") + PLANNED


@pytest.mark.parametrize("part", ["infer", "models", "verify"])
def test_the_engine_knows_no_drafters_name(part):
    found = [
        f"{name_of(path)}:{number}: {name}"
        for path in (PACKAGE / part).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for name in DRAFTER_NAMES
        if spellings(name).search(line)
    ]
    assert not found


@pytest.mark.parametrize("part", ["infer", "models", "verify"])
def test_the_engine_imports_the_contract_and_no_drafter(part):
    drafters = {path.stem for path in (PACKAGE / "drafters").iterdir()} - {"__init__", "base"}
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in (PACKAGE / part).rglob("*.py")
        for line, name in imports(path)
        if name.startswith("jspec.drafters.") and name.split(".")[2] in drafters
    ]
    assert not wrong


@pytest.mark.parametrize("text", ["DraftModel", "draft_model", "draft-model", "DRAFT_MODEL"])
def test_a_drafters_name_is_found_in_any_spelling(text):
    assert spellings("draft-model").search(f"x = {text}()")
    assert not spellings("draft-model").search("a draft model is a smaller model")


def test_files_stay_readable():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: n for name, n in lengths.items() if n > LONGEST_FILE}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|mnt|opt|tmp|var)/\w")
    found = []
    for path in tracked_files():
        if not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}: {match[0]}" for match in place.finditer(text)]
    assert not found


def test_links_at_the_top_lead_into_the_package():
    for name in LINKS:
        link = ROOT / name
        assert link.is_symlink() and link.resolve() == PACKAGE / name


@pytest.mark.parametrize(
    "use", ["jspec", "jspec.load_target", "jspec.generate", "jspec.decode_loop"]
)
def test_import_is_quick(use):
    """Neither the package nor its functions pull in a heavy library before they are called."""
    code = f"import sys, jspec; {use}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert not loaded & HEAVY
    assert use != "jspec" or "jax" not in loaded
