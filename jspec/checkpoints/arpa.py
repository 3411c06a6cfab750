"""The ARPA text format of n-gram models, in and out.

In reading order: `write_arpa`, `read_arpa`, and the parts of a file that it reads.

    \\data\\
    ngram 1=3
    ngram 2=1

    \\1-grams:
    -0.5<tab>7<tab>-0.3          log10 of the probability, the tokens, log10 of the backoff
    ...
    \\end\\

Words are token ids in decimal, or names that are given. `<s>` is the id that begins texts.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jspec.errors import UserError
from jspec.models.ngram.model import ABSENT, Grams, NGramModel
from jspec.text_files import without_mark

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"

_LN10 = math.log(10)
_SPACE = re.compile(r"[ \t\r\n]+")


def word_ids(
    vocab_size: int, *, words: Sequence[str] | None, begin: int | None, end: int | None
) -> dict[str, int]:
    """The id of every word.

    Args:
      words: of every id of the vocabulary, as the tokens of a tokenizer; decimal ids where None.
      begin: id that is written `<s>`.
      end: id that is written `</s>`.

    Raises:
      UserError: words that cannot be told apart or that hold white space.
    """
    names = [str(i) for i in range(vocab_size)] if words is None else list(words)
    if len(names) != vocab_size:
        raise UserError(f"expected a word for each of {vocab_size} ids, given {len(names)}")
    if begin is not None:
        names[begin : begin + 1] = [BEGIN]  # also at vocab_size, past the last
    if end is not None:
        names[end] = END
    found = {name: i for i, name in enumerate(names)}
    for i, name in enumerate(names):
        if not name or _SPACE.search(name) or found[name] != i:
            reason = f"stands for id {found[name]} too" if found.get(name) != i else "has a space"
            raise UserError(
                f"the word {name!r} of id {i} {reason if name else 'is empty'}; leave words out to "
                "use ids"
            )
    return found


def write_arpa(
    path: Path, model: NGramModel, *, words: Sequence[str] | None = None, end: int | None = None
) -> None:
    """Write a model; nine digits, so that float32 comes back as it was.

    Args:
      words: of every id; decimal ids if not given.
      end: id that is written `</s>`, as other programs expect.

    Raises:
      UserError: words that an ARPA file cannot hold.
    """
    names = list(word_ids(model.vocab_size, words=words, begin=model.begin, end=end))
    grams = [table for i, table in enumerate(model.grams) if i == 0 or len(table)]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(table)}\n" for n, table in enumerate(grams, 1))
        texts = [""]
        for n, table in enumerate(grams, 1):
            contexts, last = np.divmod(table.keys, model.n_ids)
            pairs = zip(contexts.tolist(), last.tolist(), strict=True)
            texts = [f"{texts[context]} {names[token]}".lstrip(" ") for context, token in pairs]
            file.write(f"\n\\{n}-grams:\n")
            logs = zip(texts, table.logprobs / _LN10, table.log_backoffs / _LN10, strict=True)
            for text, logprob, backoff in logs:
                tail = f"\t{backoff:.9g}" if n < len(grams) and backoff else ""
                file.write(f"{logprob:.9g}\t{text}{tail}\n")
        file.write("\n\\end\\\n")


def read_arpa(
    path: Path,
    *,
    vocab_size: int,
    words: Sequence[str] | None = None,
    begin: int | None = None,
    end: int | None = None,
) -> NGramModel:
    """The model of an ARPA file.

    Args:
      vocab_size: ids of the vocabulary.
      words: of every id; decimal ids if not given.
      begin: id of `<s>`; outside of the vocabulary if not given.
      end: id of `</s>`, where `words` has no such word.

    Raises:
      UserError: what is no ARPA file, with the line; words that the vocabulary does not have; ids
        without a probability.

    Differs: an id that the file does not have gets its share of `<unk>`, so that probabilities sum
      to 1, where KenLM gives the whole of it to each. An n-gram whose beginning is missing is
      refused.
    """
    sections = list(_sections(path))
    if begin is None and any(line.words == [BEGIN] for line in sections[0].lines):
        begin = vocab_size if words is None or BEGIN not in words else list(words).index(BEGIN)
    ids = word_ids(vocab_size, words=words, begin=begin, end=end)
    n_ids = max(vocab_size, (begin or 0) + 1)
    grams = [_unigrams(path, sections[0], ids, n_ids, begin)]
    for section in sections[1:]:
        grams.append(_longer(path, section, ids, n_ids, grams))
    return NGramModel(vocab_size, begin, tuple(grams))


def _unigrams(
    path: Path, section: _Section, ids: dict[str, int], n_ids: int, begin: int | None
) -> Grams:
    logprobs, log_backoffs = np.full(n_ids, np.nan), np.zeros(n_ids)
    unknown = next((line for line in section.lines if line.words == [UNKNOWN]), None)
    for line in section.lines:
        if line is unknown and UNKNOWN not in ids:
            continue
        [i] = _ids(path, line, ids)
        if not math.isnan(logprobs[i]):
            raise _fault(path, line.number, f"{line.words[0]!r} stands here a second time")
        logprobs[i], log_backoffs[i] = line.logprob, line.backoff
    if begin is not None:
        logprobs[begin] = 0.0  # given, whatever the file says
    missing = np.flatnonzero(np.isnan(logprobs))
    if len(missing) and unknown is None:
        raise UserError(
            f"{path}: {len(missing)} of {n_ids} ids have no probability, the first is "
            f"{missing[0]}, and there is no {UNKNOWN}; give the file of this vocabulary"
        )
    if len(missing) and unknown is not None:
        if UNKNOWN in ids:
            missing = np.append(missing, ids[UNKNOWN])
        logprobs[missing] = unknown.logprob - math.log(len(missing))
        log_backoffs[missing] = unknown.backoff
    return Grams(np.arange(n_ids), logprobs, log_backoffs)


def _longer(
    path: Path, section: _Section, ids: dict[str, int], n_ids: int, shorter: list[Grams]
) -> Grams:
    lines = section.lines
    rows = np.array([_ids(path, line, ids) for line in lines], np.int64).reshape(-1, section.n)
    ranks = rows[:, 0]
    for i, grams in enumerate(shorter[1:], 1):
        keys = np.where(ranks < 0, ABSENT, ranks * n_ids + rows[:, i])
        ranks = grams.find(keys) if len(grams) else np.full(len(rows), ABSENT)
    if np.any(ranks < 0):
        line = lines[int(np.argmax(ranks < 0))]
        raise _fault(
            path,
            line.number,
            f"{' '.join(line.words[:-1])!r}, with which this n-gram begins, is none of the "
            f"{section.n - 1}-grams",
        )
    keys, firsts, counts = np.unique(
        ranks * n_ids + rows[:, -1], return_index=True, return_counts=True
    )
    if np.any(counts > 1):
        key = keys[np.argmax(counts > 1)]
        at = np.flatnonzero(ranks * n_ids + rows[:, -1] == key)[1]
        again = " ".join(lines[at].words)
        raise _fault(path, lines[at].number, f"{again!r} stands here a second time")
    logprobs = np.array([line.logprob for line in lines])
    log_backoffs = np.array([line.backoff for line in lines])
    return Grams(keys, logprobs[firsts], log_backoffs[firsts])


def _ids(path: Path, line: _Line, ids: dict[str, int]) -> list[int]:
    for word in line.words:
        if word not in ids:
            raise _fault(
                path, line.number, f"{word!r} is not in the vocabulary of {len(ids)} words"
            )
    return [ids[word] for word in line.words]


# --- the text of a file --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Line:
    """An n-gram; logarithms in nats."""

    number: int
    words: list[str]
    logprob: float
    backoff: float


@dataclasses.dataclass(frozen=True)
class _Section:
    """All n-grams of a length."""

    n: int
    lines: list[_Line]


def _fault(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number}: {what}; give a file in ARPA format")


def _sections(path: Path) -> Iterator[_Section]:
    """The n-grams of every length, shortest first; their counts are those of the header."""
    lines = _numbered(path)
    if all(text != "\\data\\" for _, text in lines):
        raise UserError(f"{path}: no line is \\data\\; give a file in ARPA format")
    number, text = 0, ""
    counts: list[int] = []
    for number, text in lines:
        match = re.fullmatch(r"ngram +(\d+) *= *(\d+)", text)
        if match is None:
            break
        if int(match[1]) != len(counts) + 1:
            raise _fault(path, number, f"expected the count of {len(counts) + 1}-grams")
        counts.append(int(match[2]))
    if not counts or not counts[0]:
        raise UserError(f"{path}: expected ngram 1= and a count after \\data\\; give a whole file")
    for n, count in enumerate(counts, 1):
        if text != f"\\{n}-grams:":
            raise _fault(path, number, f"expected \\{n}-grams:, given {text[:40]!r}")
        section = _Section(n, [])
        for number, text in lines:
            if text.startswith("\\") and re.fullmatch(r"\\(\d+-grams:|end\\)", text):
                break
            section.lines.append(_parsed(path, number, text, n, is_longest=n == len(counts)))
        else:
            raise _fault(path, number, "expected \\end\\ at the end; the file is cut short")
        if len(section.lines) != count:
            given = f"{len(section.lines)} {n}-grams come before"
            raise _fault(path, number, f"{given}, the header says {count}")
        yield section
    if text != "\\end\\":
        raise _fault(path, number, f"expected \\end\\, given {text[:40]!r}")


def _parsed(path: Path, number: int, text: str, n: int, *, is_longest: bool) -> _Line:
    parts = _SPACE.split(text)
    if len(parts) != n + 1 and (is_longest or len(parts) != n + 2):
        raise _fault(
            path,
            number,
            f"expected a logarithm, {n} words{'' if is_longest else ' and maybe a backoff'}, "
            f"given {text[:40]!r}",
        )
    try:
        logprob = float(parts[0])
        backoff = float(parts[n + 1]) if len(parts) == n + 2 else 0.0
    except ValueError:
        raise _fault(
            path, number, f"expected numbers around the words, given {text[:40]!r}"
        ) from None
    if not (logprob <= 0 and math.isfinite(logprob) and math.isfinite(backoff)):
        raise _fault(path, number, f"expected a finite logarithm of at most 0, given {parts[0]}")
    return _Line(number, parts[1 : n + 1], logprob * _LN10, backoff * _LN10)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = without_mark(line, str(path)) if number == 1 else line
                text = line.decode("utf-8").strip(" \t\r\n")
                if text:
                    yield number, text
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an ARPA file") from None
    except UnicodeDecodeError:
        raise _fault(path, number, "not UTF-8") from None
