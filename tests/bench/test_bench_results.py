"""Records written together stay together, and a file is of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jspec.bench.results import Results
from jspec.errors import UserError

SETTINGS = {"kind": "settings", "seed": 0, "temperatures": (0.0, 1.0)}
PROVENANCE = {"versions": {"jax": "1"}, "commit": "abc", "device": "cpu"}


def opened(path: Path, **more: Any) -> Results:
    return Results(path, SETTINGS | more, PROVENANCE)


def numbers(results: Results) -> list[int]:
    return [record["n"] for record in results.records if record["kind"] == "run"]


def test_records_written_together_stay_together(tmp_path):
    path = tmp_path / "some" / "results.jsonl"
    first = opened(path)
    first.add("one", [{"kind": "run", "n": 0}, {"kind": "run", "n": 1}])
    first.add("two", [{"kind": "run", "n": 2}, {"kind": "run", "n": 3}])
    whole = path.read_text()
    for n_lost in (0, 1, 5, len(whole.splitlines()[-1]) + 1):
        path.write_text(whole[:-n_lost] if n_lost else whole)
        again = opened(path)
        assert numbers(again) == ([0, 1] if n_lost else [0, 1, 2, 3])
        assert again.has("one") and again.has("two") == (not n_lost)
        if n_lost:
            again.add("two", [{"kind": "run", "n": 2}, {"kind": "run", "n": 3}])
        assert path.read_text() == whole
    assert all(record["provenance"] == PROVENANCE for record in first.records)


def test_a_cut_in_the_settings_starts_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    opened(path)
    whole = path.read_text()
    path.write_text(whole[:-7])
    opened(path)
    assert path.read_text() == whole


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    opened(path)
    with pytest.raises(UserError, match="other seed; give another --out"):
        opened(path, seed=1)
    with pytest.raises(UserError, match="other device"):
        Results(path, SETTINGS, PROVENANCE | {"device": "gpu"})
    Results(path, SETTINGS, PROVENANCE | {"commit": "def"})


@pytest.mark.parametrize("text", ['{"id": 1}\n', "hello\n", "[1]\n", '{"kind": "settings"}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="not a file of jspec.bench"):
        opened(path)
    assert path.read_text() == text
