"""Files appear whole or not at all, and a full disk takes nothing away."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jspec.train.files import disk_error, write_whole, written_whole

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_the_disk(monkeypatch) -> None:
    """What is written arrives when it is synced; there it does not."""

    def full(descriptor: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)


def test_a_text_that_has_no_room_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "new" / "config.yaml"
    write_whole(path, "before")
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError) as caught:
        write_whole(path, "after")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before" and os.listdir(path.parent) == ["config.yaml"]


def test_files_come_together(tmp_path):
    for text in ("before", "after"):
        with written_whole(tmp_path, last="a") as folder:
            for name in ("a", "b"):
                (folder / name).write_text(text)
            assert not (tmp_path / "a").exists() or (tmp_path / "a").read_text() == "before"
        assert [(tmp_path / name).read_text() for name in ("a", "b")] == [text, text]
        assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_the_file_that_tells_of_the_others_is_the_last(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with written_whole(tmp_path, last="a") as folder:
        for name in "cab":
            (folder / name).touch()
    assert moved == ["b", "c", "a"]


def test_what_fails_in_between_leaves_what_was_there(tmp_path, monkeypatch):
    with written_whole(tmp_path) as folder:
        (folder / "weights").write_text("before")
    with pytest.raises(RuntimeError):
        with written_whole(tmp_path) as folder:
            (folder / "weights").write_text("after")
            raise RuntimeError
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        with written_whole(tmp_path) as folder:
            (folder / "weights").write_text("after")
    assert os.listdir(tmp_path) == ["weights"]
    assert (tmp_path / "weights").read_text() == "before"


def test_a_kill_in_between_is_in_nobodys_way(tmp_path):
    unfinished = tmp_path / ".unfinished"
    unfinished.mkdir()
    (unfinished / "half").touch()
    with written_whole(tmp_path) as folder:
        (folder / "whole").touch()
    assert os.listdir(tmp_path) == ["whole"]


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        ValueError("RESOURCE_EXHAUSTED: Failed to write 15 bytes: No space left on device [...]"),
        RuntimeError('IoError(Os { code: 122, message: "Disk quota exceeded" })'),
    ],
    ids=["python", "tensorstore", "quota"],
)
def test_libraries_errors_of_a_full_disk_are_known(error):
    found = disk_error(error, Path("there"))
    assert found is not None and found.filename == "there"
    assert found.errno in (errno.ENOSPC, errno.EDQUOT)
    assert disk_error(ValueError("another"), Path("there")) is None
