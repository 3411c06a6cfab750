"""A drafter of one's own, by its load function's name: the page's example, and its mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jspec.certify.options import CertifyOptions
from jspec.certify.subject import Subject
from jspec.config import InferConfig
from jspec.drafters import LoadedDrafter, chain_size, check_drafter, load_drafter
from jspec.drafters.contract import Broken, check_contract
from jspec.errors import UserError
from jspec.infer.command.cli import main
from jspec.testing.models import tiny_target
from tests.support.directories import write_model, write_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "drafter.md"
TARGET = tiny_target(n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=31)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "llama"
    write_model(folder, seed=0, n_layers=1)
    write_tokenizer(folder, None)
    return str(folder)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module into the working directory, as a user would, and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def one(code: str, name: str = "mine") -> None:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

    yield one
    for name in set(sys.modules) - before:
        if name.startswith(("mine", "stutter")):
            del sys.modules[name]


@pytest.fixture
def stutter(write) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code is not None
    write(code[1], "stutter")


@pytest.mark.parametrize("rule", ["walk", "rejection"])
def test_the_pages_drafter_runs_from_the_command_with_its_options(rule, stutter, model, capsys):
    flags = ["--drafter", "stutter:load", "--set", "drafter_options.depth=2", "--rule", rule]
    text = ["--prompt", "the cat", "--max-new-tokens", "12", "--json"]
    compare = ["--compare"] if rule == "walk" else []
    assert main(["--target", model, *flags, *text, *compare]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out.splitlines()[0])
    assert answer["stats"]["drafter"] == "stutter" and answer["stats"]["rule"] == rule
    assert len(answer["stats"]["accepted_by_depth"]) == 2
    assert rule != "walk" or answer["identical"]
    assert "what stutter:load holds is not counted" in err


def test_its_files_are_any_directory_which_only_its_load_function_reads(
    stutter, write, model, tmp_path, capsys
):
    write(
        "from stutter import load as other\ndef load(path, *, target):\n"
        "    assert path.name == 'own files'\n    return other(None, target=target)\n"
    )
    (tmp_path / "own files").mkdir()
    flags = ["--drafter", "mine:load", "--drafter-path", str(tmp_path / "own files")]
    text = ["--prompt", "the cat", "--max-new-tokens", "4"]
    assert main(["--target", model, *flags, *text]) == 0, capsys.readouterr().err


def test_a_certificate_and_a_config_know_it_too(stutter, model):
    config = InferConfig.model_validate(
        {"target": model, "drafter": "stutter:load", "drafter_options": {"depth": 2}}
    )
    asked = CertifyOptions(
        config=config,
        is_quick=True,
        drafters=("stutter:load",),
        prompts=None,
        n_prompts=1,
        max_new_tokens=6,
        batch_sizes=(1,),
    )
    found = Subject(asked).check_drafter("stutter:load", 1)
    assert not found.problems


STUTTER = """
import dataclasses
import jax.numpy as jnp
from jspec.drafters import LoadedDrafter, chain_draft, chain_size

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine:
    depth: int = 2
    captures = ()
    needs_picks = False
    sizes = (chain_size(2),)
    def init(self, params, prompt): return jnp.zeros_like(prompt.context.length)
    def size(self, state, context): return jnp.int32(0)
    def propose(self, params, state, context, randomness, size):
        tokens = jnp.repeat(context.pending[:, None], 3, axis=1)
        return chain_draft(tokens, jnp.ones(tokens.shape, bool)), state
    def commit(self, params, state, context, draft, verdict, output): return state

def load(path, *, target, depth: int = 2, name=None):
    return LoadedDrafter(name="mine", drafter=Mine(depth=depth), params=())
"""

NAMES = {
    "nowhere:load": "there is no module 'nowhere'",
    "jspec.nowhere:load": "there is no module 'jspec.nowhere'",
    "mine:laod": "mine has no 'laod'; did you mean mine:load?",
    "mine:": "expected package.module:load",
    ":load": "expected package.module:load",
    "mine:load:more": "expected package.module:load",
    "mine:Mine": "expected a function load(path, *, target, **options)",
    "mine:jnp": "expected a function load(path, *, target, **options)",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_nowhere_is_one_line(name, write):
    write(STUTTER)
    with pytest.raises(UserError) as caught:
        check_drafter(name, {})
    assert NAMES[name] in str(caught.value) and "\n" not in str(caught.value)


OPTIONS = [
    ({"depht": 2}, "no option 'depht'; it has depth, name"),
    ({"depth": "two"}, "option depth of drafter mine:load must be int"),
]


def test_options_are_those_of_the_load_function(write):
    write(STUTTER)
    for options, told in OPTIONS:
        with pytest.raises(UserError, match=re.escape(told)):
            check_drafter("mine:load", options)
    loaded = load_drafter("mine:load", target=TARGET, depth=5, name="x")
    assert vars(loaded.drafter) == {"depth": 5}
    write(
        "def load(path, *, target, size): ...\ndef free(path, *, target, **options): ...\n", "mine2"
    )
    with pytest.raises(UserError, match=re.escape("needs option size: give drafter_options.size")):
        check_drafter("mine2:load", {})
    check_drafter("mine2:load", {"size": "any type, as it has no default"})
    check_drafter("mine2:free", {"anything": 1})
    with pytest.raises(UserError, match="no option 'target'"):
        check_drafter("mine2:free", {"target": 1})


FAULTS = {
    "import that fails": ("1 / 0", "mine cannot be imported: ZeroDivisionError"),
    "import of something missing": (
        "import not_there_at_all",
        "mine cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    "load that fails": (
        STUTTER + "def load(path, *, target): return {}['weights']",
        "its load function failed: KeyError: 'weights'",
    ),
    "another type": (
        STUTTER + "def load(path, *, target): return Mine()",
        "must return a jspec.drafters.LoadedDrafter, it returned Mine",
    ),
    "a user's mistake": (
        STUTTER
        + "from jspec.errors import UserError\n"
        + "def load(path, *, target): raise UserError('mine needs a path')",
        "mine needs a path",
    ),
    "no commit": (STUTTER.replace("def commit", "def finish"), "Mine(depth=2) has no commit"),
    "not hashable": (STUTTER.replace("frozen=True, ", ""), "it must be hashable"),
    "sizes of numbers": (STUTTER.replace("(chain_size(2),)", "(3,)"), "sizes must be a tuple of"),
    "a feature that is not there": (
        STUTTER.replace("captures = ()", 'captures = ("enter.9",)'),
        "captures has 'enter.9'",
    ),
    "state without rows": (
        STUTTER.replace("return jnp.zeros_like(prompt.context.length)", "return jnp.zeros(2)"),
        "init gave an array float32[2] without the 3 rows",
    ),
    "size of floats": (STUTTER.replace("jnp.int32(0)", "jnp.float32(0)"), "size must give one"),
    "too many tokens": (
        STUTTER.replace("[:, None], 3,", "[:, None], 4,"),
        "propose gave token int32[3, 4], expected int32[3, 3]",
    ),
    "no state": (
        STUTTER.replace("bool)), state", "bool))"),
        "propose must give a Draft and a state",
    ),
    "an error in propose": (
        STUTTER.replace("context.pending[:, None]", "context.pendign"),
        "propose failed: AttributeError",
    ),
    "state of another type": (
        STUTTER.replace("output): return state", "output): return state.astype(float)"),
        "commit gave a state with float32[3] where init gave int32[3]",
    ),
    "state that a proposal changes": (
        STUTTER.replace("bool)), state", "bool)), state.astype(float)"),
        "propose gave a state with float32[3] where init gave int32[3]",
    ),
    "state of another structure": (
        STUTTER.replace("output): return state", "output): return (state, state)"),
        "commit gave a state of another structure",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_the_contract_is_one_line(fault, write):
    code, told = FAULTS[fault]
    write(code)
    with pytest.raises(UserError) as caught:
        load_drafter("mine:load", target=TARGET)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_every_size_is_traced():
    """A second size whose draft has the first one's shape."""
    own: dict = {}
    exec(STUTTER, own)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Two(own["Mine"]):
        sizes = (chain_size(2), chain_size(1))

    check_contract(LoadedDrafter(name="mine", drafter=own["Mine"](), params=()), TARGET)
    with pytest.raises(Broken, match=r"expected int32\[3, 2\]"):
        check_contract(LoadedDrafter(name="mine", drafter=Two(), params=jnp.zeros(1)), TARGET)
