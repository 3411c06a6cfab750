"""The ARPA format: golden files, there and back, and one line for every fault."""

from __future__ import annotations

import numpy as np
import pytest

from jspec.checkpoints.arpa import read_arpa, write_arpa
from jspec.errors import UserError
from jspec.train.ngram import estimate
from tests.support.ngram_reference import GOLDEN, golden_entries, golden_model, random_texts

SMALL = """
\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-0.30103\t0\t-0.25
-0.60206\t1
-0.60206\t<unk>

\\2-grams:
-0.1\t<s> 0
-0.2\t0 1

\\end\\
"""


def in_ids(gram: str, words: list[str]) -> str:
    """A golden n-gram, its words being ids as `write_arpa` writes them."""
    return " ".join(word if word == "<s>" else str(words.index(word)) for word in gram.split())


def golden_file(name: str, words: list[str]) -> str:
    """The entries of a golden corpus as the text that other programs write."""
    sections: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for gram, (logprob, backoff) in golden_entries(name).items():
        n = len(gram.split())
        line = f"{logprob}\t{in_ids(gram, words)}" + (f"\t{backoff}" if n < 3 else "")
        sections[n].append(line)
    counts = "".join(f"ngram {n}={len(lines)}\n" for n, lines in sections.items())
    grams = "".join(f"\n\\{n}-grams:\n" + "\n".join(x) + "\n" for n, x in sections.items())
    return f"\\data\\\n{counts}{grams}\n\\end\\\n"


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_is_the_estimated_model(tmp_path, name):
    model, words = golden_model(name)
    (tmp_path / "golden.arpa").write_text(golden_file(name, words))
    found = read_arpa(tmp_path / "golden.arpa", vocab_size=len(words) - 1)  # <s> is outside
    assert (found.begin, found.order) == (model.begin, 3)
    for ours, theirs in zip(model.grams, found.grams, strict=True):
        assert np.array_equal(ours.keys, theirs.keys)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=5e-6)  # nats: 2e-6 of log10
        assert ours.log_backoffs == pytest.approx(theirs.log_backoffs, abs=5e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_written_are_the_golden_entries(tmp_path, name):
    model, words = golden_model(name)
    write_arpa(tmp_path / "ours.arpa", model)
    lines = [line.split("\t") for line in (tmp_path / "ours.arpa").read_text().splitlines()]
    ours = {
        parts[1]: (float(parts[0]), float(parts[2]) if len(parts) > 2 else 0.0)
        for parts in lines
        if len(parts) > 1
    }
    golden = {in_ids(gram, words): logs for gram, logs in golden_entries(name).items()}
    assert set(ours) == set(golden)
    for gram, expected in golden.items():
        assert ours[gram] == pytest.approx(expected, abs=2e-6), gram


@pytest.mark.parametrize(("order", "begin", "end"), [(1, None, None), (3, 0, 1), (4, 100, None)])
def test_a_model_comes_back_from_its_file(tmp_path, order, begin, end):
    texts = [
        t if begin is None else [begin, *t] for t in random_texts(np.random.default_rng(1), 30)
    ]
    model = estimate(texts, order=order, vocab_size=100, begin=begin)
    write_arpa(tmp_path / "a.arpa", model, end=end)
    found = read_arpa(tmp_path / "a.arpa", vocab_size=100, begin=begin, end=end)
    assert found.begin == begin
    for before, after in zip(model.grams, found.grams, strict=True):
        assert np.array_equal(before.keys, after.keys)
        assert np.allclose(before.logprobs, after.logprobs, rtol=1e-8, atol=0)
        assert np.allclose(before.log_backoffs, after.log_backoffs, rtol=1e-8, atol=1e-9)


def test_ids_that_a_file_does_not_have_share_the_unknown_word(tmp_path):
    (tmp_path / "a.arpa").write_text(SMALL)
    model = read_arpa(tmp_path / "a.arpa", vocab_size=4)
    assert model.begin == 4
    assert np.exp(model.grams[0].logprobs) == pytest.approx([0.5, 0.25, 0.125, 0.125, 1], abs=1e-5)
    after_begin = np.exp(model.logprobs([4, 0]))[1], np.exp(model.logprobs([4, 1]))[1]
    assert after_begin == pytest.approx((10**-0.1, 10**-1.10206))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ngram 1=4\nngram 2=2\n", "", r"header counts \[\] n-grams by length"),
        ("ngram 2=2\n", "", "line 6: expected a finite logarithm of at most 0, 1 words, given"),
        ("ngram 1=4", "ngram 1=5", r"header counts \[5, 2\] n-grams by length.* \[4, 2\]; give a"),
        ("-0.2\t0 1\n\n\\end\\", "", r"header counts \[4, 2\] n-grams.* \[4, 1\]; give a whole"),
        ("\\2-grams:", "\\3-grams:", "line 12: expected .2-grams:"),
        ("-0.2\t0 1", "-0.2\t0", "line 14: expected a finite logarithm of at most 0, 2 words"),
        ("-0.2\t0 1", "-0.2\t0 1\t-0.3", "line 14"),
        ("-0.2\t0 1", "zero\t0 1", "line 14: expected a finite logarithm"),
        ("-0.2\t0 1", "0.2\t0 1", "line 14: expected a finite logarithm of at most 0"),
        ("-0.2\t0 1", "-nan\t0 1", "line 14: expected a finite logarithm"),
        ("-0.2\t0 1", "-0.2\t0 9", "line 14: '9' is not in the vocabulary"),
        ("-0.2\t0 1", "-0.2\t<s> 0", "line 14: '<s> 0' stands here a second time"),
        ("-0.60206\t1\n", "-0.60206\t0\n", "line 9: '0' stands here a second time"),
        ("-0.60206\t<unk>", "-0.60206\t2", "1 of 5 ids have no probability, the first is 3"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path, old, new, expected):
    assert old in SMALL
    path = tmp_path / "a.arpa"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(UserError, match=expected) as caught:
        read_arpa(path, vocab_size=4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_n_gram_whose_beginning_is_missing_is_refused(tmp_path):
    longer = SMALL.replace("ngram 2=2", "ngram 2=2\nngram 3=1").replace(
        "\\end\\", "\\3-grams:\n-0.1\t1 0 1\n\n\\end\\"
    )
    (tmp_path / "a.arpa").write_text(longer)
    with pytest.raises(UserError, match="line 18: '1 0', with which"):
        read_arpa(tmp_path / "a.arpa", vocab_size=4)


def test_no_file_and_no_text_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_arpa(tmp_path / "none.arpa", vocab_size=4)
    (tmp_path / "a.arpa").write_bytes(b"\\data\\\n\xff\n")
    with pytest.raises(UserError, match="a.arpa: not UTF-8"):
        read_arpa(tmp_path / "a.arpa", vocab_size=4)
