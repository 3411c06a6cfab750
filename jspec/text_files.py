"""Text files in: one way to read them, which knows byte-order marks and says what is not UTF-8.

Editors on Windows put a byte-order mark before UTF-8 text. It is no part of the text, and every
text file that jspec reads may have one.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from jspec.errors import UserError

_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""By the bytes that a file begins with; those of UTF-32 begin with those of UTF-16."""


def without_mark(data: bytes, where: str) -> bytes:
    """The bytes after the mark of UTF-8, if there is one.

    Raises:
      UserError: the mark of another encoding.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{where}: not UTF-8 but {encoding}; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def decode_text(data: bytes, where: str) -> str:
    """Bytes of UTF-8 as text, without a byte-order mark.

    Args:
      where: names the bytes in an error, a file or a line of it.

    Raises:
      UserError: any other encoding.
    """
    data = without_mark(data, where)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None


def read_text(path: Path, what: str = "") -> str:
    """A text file.

    Args:
      what: put before the path in errors, such as "config".

    Raises:
      UserError: a file that cannot be read, or is not UTF-8.
    """
    where = f"{what} {path}".strip()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    return decode_text(data, where)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
      UserError: a file that cannot be read, or holds anything else.
    """
    try:
        value = json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
