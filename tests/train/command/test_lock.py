"""A second run in a directory is refused while the first one lives, and only then."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from jspec.config import Config
from jspec.errors import UserError
from jspec.train.command import cli, lock
from jspec.train.command.lock import LOCK_FILE, only_run
from jspec.train.config import KINDS

HOLD = """
import sys, time
from pathlib import Path
from jspec.train.command.lock import only_run
with only_run(Path(sys.argv[1]), is_file=sys.argv[2] == "file"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["directory", "file"])
def held(request, tmp_path):
    """A process that has the lock, and what it is of."""
    out = tmp_path / "runs" / "mine"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), request.param], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process, out, request.param == "file"
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_is_at_work_until_that_is_killed(held, tmp_path, monkeypatch):
    """Also by another path to the directory, and one of a host with another name."""
    process, out, is_file = held
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for path in (out, tmp_path / "link" / "mine"):
        with pytest.raises(UserError, match=rf"another run \(process {process.pid}\) is at work"):
            with only_run(path, is_file=is_file):
                raise AssertionError("two runs at once")
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match=rf"process {process.pid} on "):
        with only_run(out, is_file=is_file):
            raise AssertionError("two runs at once")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_run(out, is_file=is_file):
        assert out.parent.is_dir()


def test_nothing_is_left_of_a_lock(tmp_path):
    out = tmp_path / "runs" / "mine"
    with only_run(out, is_file=False):
        assert (out / LOCK_FILE).read_text().split()[0] == str(os.getpid())
    assert not (tmp_path / "runs").exists()
    with only_run(out, is_file=False):
        (out / "model").mkdir()
    assert [path.name for path in out.iterdir()] == ["model"]


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(tmp_path, monkeypatch):
    """Two runs that end and begin at once: the second locks a file that has no name any more."""
    taken, removed = lock.try_lock, []

    def after_removal(descriptor: int) -> bool:
        if not removed:
            os.unlink(tmp_path / LOCK_FILE)
            removed.append(True)
        return taken(descriptor)

    monkeypatch.setattr(lock, "try_lock", after_removal)
    with only_run(tmp_path, is_file=False):
        assert (tmp_path / LOCK_FILE).is_file()
        with pytest.raises(UserError, match="another run"), only_run(tmp_path, is_file=False):
            pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a").write_text("no directory")
    with pytest.raises(UserError, match=r"out: .*a/run cannot be written \(Not a directory\)"):
        with only_run(tmp_path / "a" / "run", is_file=False):
            pass


def fail(code: int):
    def function(*_):
        raise OSError(code, os.strerror(code))

    return function


def test_file_systems_without_locks_take_runs_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with only_run(tmp_path, is_file=False), only_run(tmp_path, is_file=False):
        pass
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(UserError, match="cannot be written"), only_run(tmp_path, is_file=False):
        pass


def test_a_full_disk_has_room_for_a_lock_that_names_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "ftruncate", fail(errno.ENOSPC))
    with only_run(tmp_path, is_file=False):
        with pytest.raises(UserError, match=r"another run \(process \?\)"):
            with only_run(tmp_path, is_file=False):
                pass


def test_only_the_first_host_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "is_first", lambda: False)
    with only_run(tmp_path / "run", is_file=False):
        assert not (tmp_path / "run").exists()


def test_all_hosts_end_where_the_first_cannot_lock(tmp_path, monkeypatch):
    def refused(check):
        raise UserError("host 0 cannot go on")

    monkeypatch.setattr(lock, "is_first", lambda: False)
    monkeypatch.setattr(lock, "agreed", refused)
    with pytest.raises(UserError, match="host 0"), only_run(tmp_path / "run", is_file=False):
        raise AssertionError("the others went on")


def test_a_lock_loses_its_name_before_it_is_released(tmp_path, monkeypatch):
    """Else it takes away the name of the next one's."""
    close, seen = os.close, []

    def spy(descriptor: int) -> None:
        seen.append((tmp_path / LOCK_FILE).exists())
        close(descriptor)

    with only_run(tmp_path, is_file=False):
        monkeypatch.setattr(os, "close", spy)
    assert seen == [False]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_under_the_lock_of_its_out(kind, tmp_path, monkeypatch):
    """Fresh and resumed runs alike."""
    fields = {"out": str(tmp_path / kind), "data": {"corpora": ["a.jsonl"]}, "steps": 1}
    fields |= {"tokenizer": "t", "target": "t", "kind": kind}
    known = KINDS[kind].model_fields
    config = KINDS[kind].model_validate({k: v for k, v in fields.items() if k in known})
    seen = []

    def run(config: Config, **options) -> int:
        with pytest.raises(UserError, match="another run"):
            with only_run(tmp_path / kind, is_file=kind == "texts"):
                pass
        seen.append(options["resume"])
        return 0

    replace_run(monkeypatch, config, run)
    assert cli.main([]) == cli.main(["--resume"]) == 0
    assert seen == [False, True]


def replace_run(monkeypatch, config: Config, run) -> None:
    monkeypatch.setattr(cli, "check_made", lambda config, given: None)
    monkeypatch.setattr(cli, "make_config", lambda args: config)
    monkeypatch.setattr(cli, "_runner", lambda config: run)


def test_a_full_disk_is_told_with_the_way_on(tmp_path, monkeypatch, capsys):
    """And the lock is gone."""

    def run(config: Config, **options) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/metrics.jsonl")

    fields = {"out": str(tmp_path / "out"), "tokenizer": "t", "data": {"corpora": ["a.jsonl"]}}
    replace_run(monkeypatch, KINDS["ngram"].model_validate(fields), run)
    assert cli.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: runs/mine/metrics.jsonl: No space left on device; ")
    assert line.endswith("make room, and --resume goes on from what was saved")
    assert not (tmp_path / "out").exists()
