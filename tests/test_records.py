"""A file of records is read up to the first line that a kill has cut short."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.records import whole_records

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
