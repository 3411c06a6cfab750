"""The journal has what the checkpoint knows, whatever was written after it."""

from __future__ import annotations

from jspec.train.journal import FILE, open_journal, read_journal


def record(step: int) -> dict:
    return {"step": step, "loss": 0.1 + step, "by": {"ü": None}}


def write(directory, steps, *, step: int) -> None:
    journal = open_journal(directory, step=step)
    for each in steps:
        journal.append(record(each))
    journal.close()


def test_lines_after_the_checkpoint_are_taken_back(tmp_path):
    write(tmp_path / "run", [1, 2, 2, 3, 4], step=0)
    assert [r["step"] for r in read_journal(tmp_path / "run")] == [1, 2, 2, 3, 4]
    write(tmp_path / "run", [3, 4, 5], step=2)
    assert read_journal(tmp_path / "run") == [record(step) for step in (1, 2, 2, 3, 4, 5)]
    write(tmp_path / "run", [], step=0)
    assert read_journal(tmp_path / "run") == []


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, [1, 2], step=0)
    whole = (tmp_path / FILE).read_bytes()
    for end in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:end])
        lines = read_journal(tmp_path)
        assert lines == [record(step + 1) for step in range(len(lines))]
        assert len(lines) >= whole[:end].count(b"\n")
    write(tmp_path, [2], step=1)
    assert read_journal(tmp_path) == [record(1), record(2)]


def test_lines_are_there_before_the_journal_is_closed(tmp_path):
    journal = open_journal(tmp_path, step=0)
    journal.append(record(1))
    assert read_journal(tmp_path) == [record(1)]
    journal.close()
