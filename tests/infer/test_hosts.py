"""Two processes of four devices decode as one process of one device does, with the same command."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.write import write_checkpoint
from jspec.console.log import Log
from jspec.infer.command.answering import find_questions
from jspec.infer.command.cli import make_config, make_parser, read_prompts
from jspec.infer.command.kept import Kept
from jspec.infer.engine import Engine
from jspec.infer.executables import Executables
from jspec.infer.results import Generation, Stats
from jspec.law import Mode
from jspec.testing.models import tiny_target
from tests.support.hosts import DEVICES, Case, Said, free_port, requests, run_together

HOSTS = 2
DRAFTERS = {
    "none": {},
    "draft-model": {"depth": 3, "width": 2},
}
"""Options by name; with weights they are those of `small`."""

LAYOUTS = {
    "rows": {"mesh": {"data": 2, "tensor": 4}, "batch_size": 4},
    "layers": {"mesh": {"layer": 2, "tensor": 4}, "batch_size": 1},
}
GROUPED = {"size": 2, "depth": 3, "width": 2}
CASES = [
    *(
        Case(name=f"{drafter}, {layout}", drafter=drafter, options=options, **LAYOUTS[layout])
        for drafter, options in DRAFTERS.items()
        for layout in LAYOUTS
    ),
    *(
        Case(
            name=f"easyspec {plan}, {layout}",
            drafter="easyspec",
            options=GROUPED | {"plan": plan},
            **LAYOUTS[layout],
        )
        for plan, layout in (("B", "rows"), ("A", "layers"))
    ),
]
PLAIN = Case(name="plain", drafter="none")


def as_hosts(*command) -> list[tuple]:
    """A command for every host, the last argument of which says who it is."""
    port = free_port()
    return [(*command, f"localhost:{port},{HOSTS},{index}") for index in range(HOSTS)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process wrote, by its name."""
    folder = tmp_path_factory.mktemp("hosts")
    for name, layers in (("target", 2), ("small", 4)):
        target = tiny_target(n_layers=layers, n_heads=8, head_dim=4, vocab_size=64)
        write_checkpoint(folder / name, target.params, target.model.config)

    def cases(chosen) -> str:
        return json.dumps([dataclasses.asdict(case) for case in chosen])

    program = ("-m", "tests.support.hosts", folder)
    hosts = [(*command, cases(CASES)) for command in as_hosts(*program)]
    said = run_together([*hosts, (*program, "alone", cases([PLAIN]))])
    assert [each.code for each in said] == [0] * (HOSTS + 1), [each.err[-2000:] for each in said]
    names = [*map(str, range(HOSTS)), "alone"]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.mark.grid
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hosts_decode_as_one_device_does(found, case):
    plain = found["alone"]["plain"]
    assert [len(tokens) > 0 for tokens in plain["tokens"]] == [True] * len(requests())
    for host in map(str, range(HOSTS)):
        ours = found[host][case.name]
        assert ours["tokens"] == plain["tokens"]
        for logprobs, wanted in zip(ours["logprobs"], plain["logprobs"], strict=True):
            np.testing.assert_allclose(logprobs, wanted, atol=1e-5)
        assert case.drafter == "none" or ours["accepted"] > 0


@pytest.mark.grid
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_compiled_after_the_warm_up(found, case):
    assert all(found[str(host)][case.name]["compiled"] == [0, 0, 0] for host in range(HOSTS))


def test_all_hosts_warm_up_in_the_same_order(monkeypatch):
    """Programs of all hosts meet in the order they are called; that of a set is another on each."""
    called = []

    def chunk(self, generation, mode):
        called.append(mode)
        return generation, jnp.zeros(())

    monkeypatch.setattr(Executables, "chunk", chunk)
    asked = sorted(requests(), key=lambda request: request.mode.value)
    for order in (asked, asked[::-1]):
        Engine(tiny_target(vocab_size=64), max_length=64).warm_up(order)
    assert called == 2 * list(Mode)


# --- the command ---------------------------------------------------------------------------------

ASKED = ("-m", "jspec.infer", "--config", "demo", "--no-compare", "--max-new-tokens", "12")
MESH = ("--mesh", f"data=1,layer={HOSTS},tensor={DEVICES}")
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)}


def records(said: Said) -> tuple[list[dict], dict]:
    *answers, last = (json.loads(line) for line in said.out.splitlines())
    return answers, last["summary"]


def untimed(answer: dict) -> dict:
    """A record without what depends on the clock."""
    timed = ("_s", "compilations")
    stats = {k: v for k, v in answer["stats"].items() if not k.endswith(timed)}
    return answer | {"stats": stats}


def keep_one_answer(path, words: tuple[str, ...]) -> None:
    """As an earlier start of this command would have, to the first of its prompts."""
    args = make_parser().parse_args(words)
    config = make_config(args)
    questions = find_questions(config, read_prompts(args, config))
    kept = Kept(path, questions, Log())
    made_up = Generation(tokens=(5,), text="x", stop_reason="max_tokens", stats=Stats())
    kept.add(questions.turns[0], made_up, None)
    kept.close()


@pytest.mark.grid
def test_the_command_says_on_the_first_host_what_one_process_says(tmp_path):
    asked = (*ASKED[2:], "--json", "--drafter", "prompt-lookup", "--set", "temperature=0.7")
    asked = (*asked, "--prompt", "There before.", "A taxi.", "Hotels in Napa?")
    keep_one_answer(tmp_path / "hosts.jsonl", asked)
    keep_one_answer(tmp_path / "alone.jsonl", asked)
    hosts = (*ASKED[:2], *asked, "--output", tmp_path / "hosts.jsonl", *MESH, "--hosts")
    alone = (*ASKED[:2], *asked, "--output", tmp_path / "alone.jsonl")
    first, second, one = run_together([*as_hosts(*hosts), alone], environment=ENVIRONMENT)
    assert (first.code, second.code, one.code) == (0, 0, 0), first.err + second.err
    answers, summary = records(first)
    wanted, of_one = records(one)
    assert [untimed(each) for each in answers] == [untimed(each) for each in wanted]
    assert summary["stats"]["new_tokens"] == of_one["stats"]["new_tokens"] == 24
    assert (summary["run"]["hosts"], summary["run"]["devices"]) == (HOSTS, HOSTS * DEVICES)
    assert second.out == "" and summary["answered_before"] == 1
    kept = [json.loads(line) for line in (tmp_path / "hosts.jsonl").read_text().splitlines()]
    assert [record["tokens"] for record in kept] == [[5], *(each["tokens"] for each in answers)]


def test_hosts_that_were_not_asked_the_same_are_refused():
    first, second = as_hosts(*ASKED, *MESH, "--hosts")
    said = run_together([(*first, "--seed", 5), second], environment=ENVIRONMENT)
    for each in said:
        assert (each.code, each.out) == (2, "")
        assert "error: host 1 and host 0 differ in their config; give the same" in each.err


def test_a_mistake_on_one_host_ends_all():
    first, second = as_hosts(*ASKED, *MESH, "--hosts")
    said = run_together([first, (*second, "--prompts", "missing.jsonl")], environment=ENVIRONMENT)
    assert [each.code for each in said] == [2, 2]
    assert "error: host 1 cannot go on; its standard error says why" in said[0].err
    assert "error: prompts missing.jsonl: cannot be read" in said[1].err


def test_hosts_that_do_not_come_are_told_in_one_line():
    waits = "import sys, jspec.hosts as hosts; hosts.join_hosts(sys.argv[1], patience_s=3)"
    for each in as_hosts("-c", waits):
        (said,) = run_together([each])
        assert (said.code, said.out) == (2, "")
        assert "after 3 s they have not all found each other" in said.err
        assert "Check failure" not in said.err


@pytest.mark.parametrize("source", [("-",), ("--prompts", "-")], ids=" ".join)
def test_standard_input_is_refused_before_hosts_are_joined(infer, source):
    run = infer("--config", "demo", "--hosts", "auto", *source)
    assert (run.code, run.out) == (2, "")
    assert "standard input reaches one host only" in run.err
