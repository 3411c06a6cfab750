"""The command as a process of its own: exit codes, streams that break, and what it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

COMMAND = (sys.executable, "-m", "jspec.infer")
LONG = ("--max-new-tokens", "150", "--ignore-eos")


@pytest.fixture
def environment(tmp_path_factory):
    """Compiled programs are kept for the next test of this session, and nowhere else."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    return os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}


def run(*argv, env, stdout: IO | int = subprocess.PIPE) -> subprocess.CompletedProcess:
    words = [str(word) for word in (*COMMAND, *argv)]
    return subprocess.run(
        words, env=env, text=True, timeout=240, stdout=stdout, stderr=subprocess.PIPE
    )


def test_a_prompt_is_answered(checkpoints, environment):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", "--json")
    done = run(*asked, "--max-new-tokens", "8", env=environment)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records[0]["tokens"]) == 8 and "summary" in records[1]


def test_a_mistake_is_one_line_and_exit_code_2(checkpoints, environment, tmp_path):
    copy = checkpoints.copy("chat", tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:50_000])
    done = run("--target", copy, "--prompt", "hi", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(checkpoints, environment):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", "--max-new-tokens", "8")
    with open("/dev/full", "w") as full:
        done = run(*asked, env=environment, stdout=full)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: standard output cannot be written (No space left on device)"]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_reader_that_leaves_is_no_error(checkpoints, environment):
    asked = ("--target", checkpoints.chat, "--prompt", "a", "b", "c", "--json", *LONG)
    process = subprocess.Popen(
        [str(word) for word in (*COMMAND, *asked)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.wait(timeout=240)
    assert "error" not in said and "Traceback" not in said and "Exception" not in said


def test_an_interrupt_keeps_what_is_there(checkpoints, environment, tmp_path):
    file = tmp_path / "p.jsonl"
    lines = ({"prompt_tokens": [0, 5], "sample": i, "temperature": 1} for i in range(20_000))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("--target", checkpoints.bare, "--prompts", file, "--json", *LONG)
    process = subprocess.Popen(
        [str(word) for word in (*COMMAND, *asked)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    records = [json.loads(line) for line in (first + out).splitlines()]
    assert process.returncode == 130, err
    summary = records[-1]["summary"]
    assert summary["complete"] is False and summary["answers"] == len(records) - 1
    assert "interrupted after" in err and "Traceback" not in err


def test_importing_jspec_is_quick(environment):
    code = (
        "import sys, jspec; slow = {'torch', 'transformers', 'matplotlib', 'jax'};"
        "print(sorted(slow & set(sys.modules)));"
        "jspec.load_target, jspec.generate, jspec.decode_loop;"
        "print(sorted((slow - {'jax'}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stderr


def test_the_command_never_imports_torch(checkpoints, environment):
    code = (
        "import sys; from jspec.infer.command.cli import main;"
        "code = main(sys.argv[1:], owns_process=True);"
        "print(code, [m for m in ('torch', 'tensorflow') if sys.modules.get(m)], file=sys.stderr)"
    )
    asked = ("--target", checkpoints.chat, "--prompt", "hi", "--max-new-tokens", "2")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, asked)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
