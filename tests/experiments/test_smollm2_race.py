"""SmolLM2's race, table and certificate: what they ask for, and what records say."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.smollm2 import certify, race, table
from jspec.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    """An evaluation folder with three rows of each set, and rows of other tasks."""
    root = tmp_path / "eval"
    root.mkdir()
    for one in race.SETS.values():
        tasks = ["summarization", "translation", "qa"] if one.task else [None]
        rows = [
            {"id": f"{one.file} {task} {i}", "category": "ab"[i % 2], "turns": [f"say {i}", "more"]}
            | ({"task": task} if task else {})
            for i in (0, 2, 1)
            for task in tasks
        ]
        (root / one.file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def written(folder: Path, path: Path, **options: Any) -> list[dict[str, Any]]:
    race.write_prompts(folder, path, **options)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_are_first_turns_of_all_sets_and_kinds_take_turns(folder, tmp_path):
    lines = written(folder, tmp_path / "prompts.jsonl")
    assert [line["category"] for line in lines] == [name for name in race.SETS for _ in range(3)]
    assert all(len(line["turns"]) == 1 for line in lines)
    ids = [line["id"] for line in lines if line["category"] == "MT-Bench"]
    assert ids == [f"mt_bench.jsonl None {i}" for i in (0, 1, 2)]
    tasks = {line["id"].split()[1] for line in lines if line["category"] == "translation"}
    assert tasks == {"translation"}
    few = written(folder, tmp_path / "few.jsonl", per_set=2)
    assert [line["id"] for line in few[:2]] == ids[:2] and len(few) == 2 * len(race.SETS)
    mixed = written(folder, tmp_path / "mixed.jsonl", sets_in_turn=True)
    assert [line["category"] for line in mixed[:5]] == [*race.SETS]
    assert sorted(map(str, mixed)) == sorted(map(str, lines))


def test_a_folder_without_a_set_is_refused(folder, tmp_path):
    (folder / "humaneval.jsonl").unlink()
    with pytest.raises(UserError, match=r"no humaneval.jsonl in .*; give --eval"):
        race.write_prompts(folder, tmp_path / "prompts.jsonl")


SECONDS = {
    ("float32", "plain"): 4.0,
    ("float32", "lookup"): 2.0,
    ("float32", "transformers plain"): 8.0,
    ("int8", "plain"): 3.0,
    ("int8", "lookup"): 5.0,
}
"""By number types and contestant, of every turn."""


def records() -> list[dict[str, Any]]:
    """Of a pass over two sets of two prompts, a prompt a turn, at two temperatures."""
    settings = {"categories": {"b": 2, "a": 2}, "temperatures": [0.0, 1.0], "repeats": 1}
    found = [{"kind": "settings", "block": "settings", **settings}]
    for block, (t, category, part) in enumerate(itertools.product((0.0, 1.0), "ba", range(2))):
        where = {"temperature": t, "category": category, "part": part, "batch_size": 1, "repeat": 0}
        for (types, name), seconds in SECONDS.items():
            calls = 4 if name == "lookup" else 12
            text = {"id": f"{category}{part}", "new_tokens": 13, "target_calls": calls}
            counts = {"draft_tokens_proposed": 0, "draft_tokens_accepted": 0}
            found.append(
                {
                    **{"kind": "run", "block": str(block), "types": types, "contestant": name},
                    **where,
                    **{"texts": 1, "new_tokens": 13, "target_calls": calls, "seconds": seconds},
                    **{"prefill_s": 1.0, "decode_s": seconds - 1, "ttft_s": 1.0, "tpot_s": 0.1},
                    **counts,
                    **{"accepted_by_depth": [], "per_prompt": [text], "mean_context": 9.0},
                    **{"same": None, "digest": "same", "load": 0.5},
                }
            )
    return found


def test_the_table_says_who_is_best_over_the_fastest_plain_decoding():
    text = table.tables(records())
    best = "best: lookup in float32, 1.50 [1.50, 1.50] times the fastest plain decoding (int8)"
    assert text.count(best) == 2  # temperatures
    assert "4.00 [4.00, 4.00] times transformers' fastest way (plain in float32)" in text
    assert text.count("on the median prompt: lookup in int8 (0.60)") == 2
    assert "| contestant | types | b | a |" in text
    assert "| lookup | float32 | 1.50 [1.50, 1.50] (tau 3.00) |" in text
    rows = [line.split(" | ")[:2] for line in text.split("\n") if line.startswith(("| fl", "| i"))]
    assert rows[:5] == [
        ["| float32", "lookup"],
        ["| int8", "plain"],
        ["| float32", "plain"],
        ["| int8", "lookup"],
        ["| float32", "transformers plain"],
    ]
    assert "not complete" not in text


@pytest.mark.parametrize("lost", ["7", "1"])
def test_a_pass_that_was_cut_off_says_so(lost):
    kept = [record for record in records() if record["block"] != lost]
    assert "not complete" in table.tables(kept)
    with pytest.raises(UserError, match="no turn is in the records yet"):
        table.tables(records()[:1])


def test_the_command_prints_and_writes_the_same(tmp_path, capsys, monkeypatch):
    lines = "".join(json.dumps(record) + "\n" for record in records())
    (tmp_path / "results.jsonl").write_text(lines)
    flags = ["--results", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["table", *flags])
    assert table.run() == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "table.md").read_text()
    flags[1] = str(tmp_path / "nothing")
    monkeypatch.setattr(sys, "argv", ["table", *flags])
    with pytest.raises(UserError, match="no records in"):
        table.run()


@pytest.mark.parametrize("module", [race, certify])
def test_flags_are_the_commands_own_and_those_that_are_given_win(
    module, folder, tmp_path, monkeypatch
):
    asked: list[list[str]] = []
    command = "bench" if module is race else "certify"
    monkeypatch.setattr(module, command, lambda flags, **_: asked.append(flags) or 0)
    flags = ["--out", str(tmp_path), "--eval", str(folder), "--max-new-tokens", "7"]
    monkeypatch.setattr(sys, "argv", [command, *flags])
    assert (race.race if module is race else certify.run)() == 0
    cli = importlib.import_module(f"jspec.{'bench' if module is race else 'certify'}.cli")
    args = cli.make_parser().parse_args(asked[0])
    assert args.max_new_tokens == "7" and args.config == "smollm2"
    prompts = args.prompts[0] if module is race else args.prompts
    count = len(Path(prompts).read_text().splitlines())
    assert count == 3 * len(race.SETS)
    if module is certify:
        assert [str(w) for w in cli.make_options(args).workloads] == [
            "200 x 256, batch 8",
            "40 x 128, batch 1",
        ]
