r"""The ARPA text format of n-gram models, written and read.

    \data\
    ngram 1=3
    ngram 2=1

    \1-grams:
    -0.5<tab>7<tab>-0.3          log10 of the probability, the tokens, log10 of the backoff
    ...
    \end\

Words are token ids in decimal. `<s>` is the id that begins texts, `</s>` the one that ends them,
and `<unk>` stands for all ids that the file does not have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jspec.errors import UserError
from jspec.models.ngram.model import ABSENT, Grams, NGramModel
from jspec.text_files import read_text

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"

_LN10 = math.log(10)


class _Line(NamedTuple):
    """An n-gram of a file; logarithms in nats."""

    number: int
    words: list[str]
    logprob: float
    backoff: float


def write_arpa(path: Path, model: NGramModel, *, end: int | None = None) -> None:
    """Write a model, with nine digits, so that float32 comes back as it was.

    Args:
      end: id that is written `</s>`, as other programs expect.
    """
    words = _words(model.vocab_size, model.begin, end)
    grams = [table for i, table in enumerate(model.grams) if i == 0 or len(table)]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(table)}\n" for n, table in enumerate(grams, 1))
        texts = [""]
        for n, table in enumerate(grams, 1):
            contexts, last = np.divmod(table.keys, model.n_ids)
            pairs = zip(contexts.tolist(), last.tolist(), strict=True)
            texts = [f"{texts[context]} {words[token]}".lstrip(" ") for context, token in pairs]
            file.write(f"\n\\{n}-grams:\n")
            logs = zip(texts, table.logprobs / _LN10, table.log_backoffs / _LN10, strict=True)
            for text, logprob, backoff in logs:
                tail = f"\t{backoff:.9g}" if n < len(grams) and backoff else ""
                file.write(f"{logprob:.9g}\t{text}{tail}\n")
        file.write("\n\\end\\\n")


def read_arpa(
    path: Path, *, vocab_size: int, begin: int | None = None, end: int | None = None
) -> NGramModel:
    """Read the model of an ARPA file.

    Args:
      vocab_size: ids of the vocabulary.
      begin: id of `<s>`; outside of the vocabulary if not given.
      end: id of `</s>`.

    Raises:
      UserError: what is no ARPA file, with the line; words that the vocabulary does not have; ids
        without a probability.

    Differs: an id that the file does not have gets its share of `<unk>`, so that probabilities sum
      to 1, where KenLM gives the whole of it to each. An n-gram whose beginning is missing is
      refused.
    """
    sections = _sections(path)
    if begin is None and any(line.words == [BEGIN] for line in sections[0]):
        begin = vocab_size
    ids = {word: i for i, word in enumerate(_words(vocab_size, begin, end))}
    grams = [_unigrams(path, sections[0], ids, begin)]
    for lines in sections[1:]:
        grams.append(_grams(path, lines, ids, grams))
    return NGramModel(vocab_size, begin, tuple(grams))


def _words(vocab_size: int, begin: int | None, end: int | None) -> list[str]:
    """List the word of every id."""
    words = [str(i) for i in range(vocab_size)]
    if begin is not None:
        words[begin : begin + 1] = [BEGIN]  # also at vocab_size, past the last
    if end is not None:
        words[end] = END
    return words


def _unigrams(path: Path, lines: Sequence[_Line], ids: dict[str, int], begin: int | None) -> Grams:
    """Read the table of unigrams, in which every id has a place."""
    unknown = next((line for line in lines if line.words == [UNKNOWN]), None)
    given = _grams(path, [line for line in lines if line is not unknown], ids, [])
    logprobs, log_backoffs = np.full(len(ids), np.nan), np.zeros(len(ids))
    logprobs[given.keys], log_backoffs[given.keys] = given.logprobs, given.log_backoffs
    if begin is not None:
        logprobs[begin] = 0.0  # it is given, never predicted, whatever the file says
    missing = np.flatnonzero(np.isnan(logprobs))
    if len(missing) and unknown is None:
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} ids have no probability, the first is "
            f"{missing[0]}, and there is no {UNKNOWN}; give the file of this vocabulary"
        )
    if len(missing) and unknown is not None:
        logprobs[missing] = unknown.logprob - math.log(len(missing))
        log_backoffs[missing] = unknown.backoff
    return Grams(np.arange(len(ids)), logprobs, log_backoffs)


def _grams(
    path: Path, lines: Sequence[_Line], ids: dict[str, int], shorter: Sequence[Grams]
) -> Grams:
    """Read the table of all n-grams of one length, given the tables of shorter ones."""
    n, n_ids = len(shorter) + 1, len(ids)
    rows = np.array([_ids(path, line, ids) for line in lines], np.int64).reshape(-1, n)
    ranks = np.zeros(len(rows), np.int64)  # of the empty n-gram, with which all begin
    for table, column in zip(shorter, rows.T, strict=False):
        ranks = table.find(np.where(ranks == ABSENT, ABSENT, ranks * n_ids + column))
    if np.any(ranks == ABSENT):
        line = lines[int(np.argmax(ranks == ABSENT))]
        start = " ".join(line.words[:-1])
        what = f"{start!r}, with which this n-gram begins, is none of the {n - 1}-grams"
        raise _fault(path, line.number, what)
    all_keys = ranks * n_ids + rows[:, -1]
    keys, firsts, counts = np.unique(all_keys, return_index=True, return_counts=True)
    if np.any(counts > 1):
        line = lines[np.flatnonzero(all_keys == keys[np.argmax(counts > 1)])[1]]
        raise _fault(path, line.number, f"{' '.join(line.words)!r} stands here a second time")
    logs = np.array([(line.logprob, line.backoff) for line in lines]).reshape(-1, 2)[firsts]
    return Grams(keys, logs[:, 0], logs[:, 1])


def _ids(path: Path, line: _Line, ids: dict[str, int]) -> list[int]:
    for word in line.words:
        if word not in ids:
            what = f"{word!r} is not in the vocabulary of {len(ids)} words"
            raise _fault(path, line.number, what)
    return [ids[word] for word in line.words]


def _fault(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number}: {what}; give a file in ARPA format")


def _sections(path: Path) -> list[list[_Line]]:
    """Split a file into its n-grams of every length, shortest first."""
    counts: list[int] = []
    sections: list[list[_Line]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        text = line.strip(" \t\r")
        header = re.fullmatch(r"ngram +(\d+) *= *(\d+)", text)
        start = re.fullmatch(r"\\(\d+)-grams:", text)
        if text == "\\end\\":
            break
        if header and not sections:
            counts.append(int(header[2]))
        elif start:
            sections.append([])
            if int(start[1]) != len(sections):
                raise _fault(path, number, f"expected \\{len(sections)}-grams:, given {text!r}")
        elif text and sections:
            n = len(sections)
            sections[-1].append(_parsed(path, number, text, n, is_longest=n == len(counts)))
    found = [len(section) for section in sections]
    if not counts or counts != found:
        raise UserError(
            f"{path}: the header counts {counts} n-grams by length, the file has {found}; give a "
            "whole file in ARPA format"
        )
    return sections


def _parsed(path: Path, number: int, text: str, n: int, *, is_longest: bool) -> _Line:
    parts = re.split(r"[ \t]+", text)
    words, numbers = parts[1 : n + 1], [parts[0], *parts[n + 1 :]]
    try:
        logprob, *backoff = (float(each) * _LN10 for each in numbers)
    except ValueError:
        logprob, backoff = math.nan, []
    is_line = len(words) == n and len(backoff) <= (not is_longest)
    if not is_line or not logprob <= 0 or not all(map(math.isfinite, [logprob, *backoff])):
        more = "" if is_longest else " and maybe a finite backoff"
        what = f"expected a finite logarithm of at most 0, {n} words{more}, given {text[:40]!r}"
        raise _fault(path, number, what)
    return _Line(number, words, logprob, backoff[0] if backoff else 0.0)
