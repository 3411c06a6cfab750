"""`python -m jspec.train`: a tokenizer, a model, texts that it writes, a model that learns them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jspec import load_target
from jspec.config import runnable_names
from jspec.train.command.cli import main
from jspec.train.journal import read_journal

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
TEMPLATE = "{{ bos_token }}" + TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SIZES = {
    "width": 16,
    "mlp_width": 24,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 8,
    "max_positions": 64,
    "has_tied_head": True,
}
WORDS = "the cat saw a dog and the dog ran to the sea where a ship with red sails lay".split()


def write_yaml(path: Path, values: dict) -> str:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two corpora, and a tokenizer and a model trained on them by the command."""
    folder = tmp_path_factory.mktemp("train")
    texts = [{"text": " ".join(WORDS[i % 7 : 9 + i % 5])} for i in range(80)]
    turns = [
        {
            "messages": [
                {"role": "user", "content": " ".join(WORDS[i % 9 :][:4])},
                {"role": "assistant", "content": " ".join(WORDS[i % 6 :][:6])},
            ]
        }
        for i in range(40)
    ]
    for name, rows in (("stories", texts), ("talks", turns)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    data = {
        "folder": str(folder),
        "corpora": ["stories.jsonl", "talks.jsonl"],
        "length": 32,
        "held_out": 0.1,
    }
    tokenizer = {
        "kind": "tokenizer",
        "out": str(folder / "tokenizer"),
        "vocab_size": 280,
        "special": ["<|user|>", "<|assistant|>"],
        "chat_template": TEMPLATE,
        "max_length": 64,
        "data": data,
    }
    model = {
        "kind": "model",
        "out": str(folder / "run"),
        "tokenizer": str(folder / "tokenizer"),
        "model": SIZES,
        "data": data,
        "steps": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "eval_every": 2,
        "log_every": 1,
        "compute_dtype": "float32",
    }
    write_yaml(folder / "tokenizer.yaml", tokenizer)
    write_yaml(folder / "model.yaml", model)
    assert main(["--config", str(folder / "tokenizer.yaml")]) == 0
    assert main(["--config", str(folder / "model.yaml")]) == 0
    return folder


def test_a_run_leaves_a_checkpoint_that_generates(folder):
    import jspec

    target = load_target(folder / "run/model")
    assert target.stop_ids == (1,) and target.max_length == 64
    prompts = ["the cat", [{"role": "user", "content": "a dog"}]]
    for answer in jspec.generate(target, prompts, max_new_tokens=4):
        assert len(answer.tokens) <= 4 and answer.text is not None
    journal = read_journal(folder / "run")
    assert [r["step"] for r in journal if "loss" in r] == [1, 2, 3, 4]
    evaluations = [r for r in journal if "held_out" in r]
    assert [r["step"] for r in evaluations] == [2, 4]
    assert set(evaluations[0]["held_out_by_corpus"]) == {"stories", "talks"}
    assert (folder / "run/loss.png").stat().st_size > 1000
    resolved = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert resolved["optimizer"]["learning_rate"] == 3e-4 and resolved["steps"] == 4


def test_the_example_of_the_documentation_trains(folder, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[3] / "docs/train.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    shutil.copyfile(folder / "stories.jsonl", tmp_path / "corpus.jsonl")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert 0 < float(capsys.readouterr().out) < 10
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_a_finished_run_is_not_begun_again(folder, capsys):
    assert main(["--config", str(folder / "model.yaml")]) == 2
    assert "has a run of 4 steps; resume it" in capsys.readouterr().err


def test_another_config_cannot_resume_a_run(folder, capsys):
    arguments = ["--config", str(folder / "model.yaml"), "--resume", "--set"]
    assert main([*arguments, "seed=1", "optimizer.b1=0.5"]) == 2
    assert "has another optimizer, seed; resume with what" in capsys.readouterr().err
    assert yaml.safe_load((folder / "run/config.yaml").read_text())["seed"] == 0


def test_more_steps_go_on_with_a_run(folder, capsys, tmp_path):
    out = f"out={tmp_path / 'run'}"
    config = ["--config", str(folder / "model.yaml"), "--json", "--set", out]
    assert main([*config, "steps=2"]) == 0
    capsys.readouterr()
    assert main([*config, "steps=3", "--resume"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [3]
    assert [r["step"] for r in records if "held_out" in r] == [3]  # the last, if not by twos
    assert records[-1]["summary"]["steps"] == records[-1]["summary"]["planned"] == 3


def texts_config(folder: Path, out: Path, **changes) -> str:
    values = {
        "kind": "texts",
        "out": str(out),
        "target": str(folder / "run/model"),
        "n_texts": 12,
        "prompt_tokens": 4,
        "max_new_tokens": 6,
        "batch_size": 3,
        "data": {"folder": str(folder), "corpora": ["stories.jsonl", "talks.jsonl"], "length": 40},
    }
    return write_yaml(out.with_suffix(".yaml"), values | changes)


def test_texts_are_resumed_and_learnt_from(folder, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    config = texts_config(folder, out)
    assert main(["--config", config]) == 0
    whole = out.read_text().splitlines()
    rows = [json.loads(line) for line in whole]
    assert len(rows) == 12 and {row["temperature"] for row in rows} == {0.0, 0.7, 1.0}
    assert all(0 < len(row["tokens"]) - row["prompt_tokens"] <= 6 for row in rows)
    assert main(["--config", config]) == 2
    out.write_text("\n".join(whole[:5]) + "\n" + whole[5][:20])
    assert main(["--config", config, "--resume"]) == 0
    assert sorted(out.read_text().splitlines()) == sorted(whole)
    student = {
        "kind": "model",
        "out": str(tmp_path / "student"),
        "tokenizer": str(folder / "tokenizer"),
        "teacher": str(folder / "run/model"),
        "model": SIZES,
        "data": {"folder": str(tmp_path), "corpora": ["texts.jsonl"], "length": 32, "held_out": 0},
        "steps": 2,
        "batch_size": 2,
    }
    capsys.readouterr()
    assert main(["--config", write_yaml(tmp_path / "student.yaml", student), "--json"]) == 0
    said = capsys.readouterr()
    first = json.loads(said.out.splitlines()[0])
    assert {"loss", "text_loss", "agreement", "overlap"} <= set(first)
    asked = f"--target {folder / 'run/model'} --drafter draft-model"
    assert f"{asked} --drafter-path {tmp_path / 'student/model'} --compare" in said.err
    assert 0 < first["overlap"] <= 1


MISTAKES = {
    "no config": ([], "nothing to train: give --config"),
    "unknown field": (["--set", "stepz=3"], "unknown key 'stepz'; did you mean 'steps'?"),
    "unknown size": (["--set", "model.widht=3"], "model: unknown key 'widht'"),
    "too long": (["--set", "data.length=128"], "data.length 128 is more than the 64 positions"),
    "both lengths": (["--set", "epochs=2"], "expected exactly one of steps and epochs"),
    "micro-batch": (["--set", "micro_batch_size=3"], "batch_size a multiple of micro_batch_size"),
    "mesh": (["--set", "mesh.data=3"], "micro_batch_size 2 cannot be split over data x fsdp = 3"),
    "corpus": (["--set", "data.corpora=[x.jsonl]"], "x.jsonl is not there; give data.folder"),
    "no corpora": (
        ["--set", "data.corpora=[]"],
        "data.corpora: expected a list of file names, or mappings with a file or a dataset "
        "(it must be given), given []",
    ),
    "hosts": (["--hosts", "here"], "hosts: expected auto or ADDRESS:PORT,COUNT,INDEX"),
    "host index": (["--hosts", "h:1,2,2"], "index 2 of 2; they count from 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, folder, tmp_path, capsys):
    arguments, expected = MISTAKES[mistake]
    config = [] if mistake == "no config" else ["--config", str(folder / "model.yaml")]
    out = ["--set", f"out={tmp_path / 'out'}"] if config else []
    assert main([*config, *out, *arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert expected in line, line


def test_a_config_without_a_known_kind_is_refused(tmp_path, capsys):
    assert main(["--config", write_yaml(tmp_path / "x.yaml", {"kind": "modle"})]) == 2
    assert "did you mean 'model'?" in capsys.readouterr().err
    assert main(["--config", "demo"]) == 2
    assert "generates text; run python -m jspec.infer --config demo" in capsys.readouterr().err


def test_ready_recipes_are_valid(capsys):
    names = runnable_names(is_training=True)
    assert {"demo/tokenizer", "demo/target", "demo/texts", "demo/draft"} <= set(names)
    for name in names:
        assert main(["--config", name, "--show"]) == 0, name
        assert yaml.safe_load(capsys.readouterr().out)["kind"]


def test_ctrl_c_saves_and_a_second_start_goes_on(folder, tmp_path):
    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "jspec.train", "--config", str(folder / "model.yaml")]
        settings = [f"out={out}", "eval_every=400", "save_every=400"]
        return subprocess.Popen(
            [*command, "--json", "--set", *settings, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    run = start(tmp_path / "cut", "steps=400")
    assert run.stdout is not None
    for line in run.stdout:
        if json.loads(line).get("step", 0) >= 3:
            run.send_signal(signal.SIGINT)
            break
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130 and "--resume goes on" in err
    done = len(read_journal(tmp_path / "cut"))
    assert 3 <= done < 400
    resumed = start(tmp_path / "cut", f"steps={done + 3}", "--resume")
    assert resumed.communicate(timeout=120) and resumed.returncode == 0
    steps = [r["step"] for r in read_journal(tmp_path / "cut") if "loss" in r]
    assert steps == list(range(1, done + 4))
