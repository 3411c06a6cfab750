"""The journal has what the checkpoint knows, whatever was written after it."""

from __future__ import annotations

from jspec.train.journal import FILE, TrainingJournal, read_journal


def record(step: int) -> dict:
    return {"step": step, "loss": 0.1 + step, "by": {"ü": None}}


def write(directory, steps, **options) -> None:
    journal = TrainingJournal(directory, **options)
    for step in steps:
        journal.write(record(step))
    journal.close()


def test_lines_after_the_checkpoint_are_taken_back(tmp_path):
    write(tmp_path / "run", [1, 2, 2, 3, 4], step=0, is_writing=True)
    assert [r["step"] for r in read_journal(tmp_path / "run")] == [1, 2, 2, 3, 4]
    write(tmp_path / "run", [3, 4, 5], step=2, is_writing=True)
    assert read_journal(tmp_path / "run") == [record(step) for step in (1, 2, 2, 3, 4, 5)]
    write(tmp_path / "run", [], step=0, is_writing=True)
    assert read_journal(tmp_path / "run") == []


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, [1, 2], step=0, is_writing=True)
    whole = (tmp_path / FILE).read_bytes()
    for end in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:end])
        lines = read_journal(tmp_path)
        assert lines == [record(step + 1) for step in range(len(lines))]
        assert len(lines) >= whole[:end].count(b"\n")
    write(tmp_path, [2], step=1, is_writing=True)
    assert read_journal(tmp_path) == [record(1), record(2)]


def test_lines_are_there_before_the_journal_is_closed(tmp_path):
    journal = TrainingJournal(tmp_path, step=0, is_writing=True)
    journal.write(record(1))
    assert read_journal(tmp_path) == [record(1)]
    journal.close()


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    write(tmp_path / "run", [1], step=0, is_writing=False)
    assert not (tmp_path / "run").exists() and read_journal(tmp_path / "run") == []
