"""A file of records is read up to the first line that a kill has cut short."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.records import RecordFile, whole_records

VALUES = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3)


@given(records=st.lists(VALUES, max_size=4), cut=st.integers(0, 200))
def test_a_cut_file_has_the_records_whose_lines_are_whole(records, cut):
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    data = b"".join(lines)[:cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.jsonl"
        path.write_bytes(data)
        found = list(whole_records(path))
    assert [record for record, _ in found] == records[: data.count(b"\n")]
    ends = [end for _, end in found]
    assert ends == [sum(map(len, lines[: i + 1])) for i in range(len(found))]


@pytest.mark.parametrize("line", [b"[1]\n", b"7\n", b"hello\n", b"\xff\n", b"\n", b'{"a": 2}'])
def test_reading_ends_with_a_line_that_is_no_record(tmp_path, line):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line)
    assert list(whole_records(path)) == [({"a": 1}, 9)]


def test_no_file_has_no_records(tmp_path):
    assert list(whole_records(tmp_path / "none.jsonl")) == []


def test_records_are_appended_after_what_is_whole(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"')
    ((_, end),) = whole_records(path)
    file = RecordFile(path)
    assert file.truncate(end) and not file.truncate(end)
    file.append({"a": 2}, {"a": "\u00e9"})
    file.close()
    assert [record["a"] for record, _ in whole_records(path)] == [1, 2, "\u00e9"]


def test_a_record_is_written_to_its_end_or_names_the_file(tmp_path, monkeypatch):
    write, room = os.write, [4, 3]

    def slow(descriptor, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: room.pop()])

    path = tmp_path / "some.jsonl"
    file = RecordFile(path)
    monkeypatch.setattr(os, "write", slow)
    with pytest.raises(OSError) as caught:
        file.append({"step": 1})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b'{"step"'
    room[:] = [100, 1]
    file.append({"step": 1})
    assert path.read_bytes() == b'{"step"{"step": 1}\n'


@pytest.mark.parametrize("is_synced", [True, False])
def test_records_are_synced_where_asked_for(tmp_path, monkeypatch, is_synced):
    path, sizes = tmp_path / "some.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda _: sizes.append(path.stat().st_size))
    RecordFile(path, is_synced=is_synced).append({"a": 1})
    assert sizes == ([9] if is_synced else [])


def test_one_process_at_a_time_has_the_lock(tmp_path, monkeypatch):
    path = tmp_path / "some.jsonl"
    first, second = RecordFile(path), RecordFile(path)
    assert first.lock() and not second.lock()
    first.close()
    assert second.lock()

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    code = errno.ENOLCK  # a file system without locks
    assert RecordFile(path).lock()
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        RecordFile(path).lock()
