"""The corpora of a config are packed as it says."""

from __future__ import annotations

import pytest

from jspec.train.command.corpora import load_corpora
from jspec.train.config import DataConfig


@pytest.mark.parametrize("overlong", ["truncate", "pieces"])
def test_what_is_beyond_a_sequence_is_left_out_or_a_piece_of_its_own(
    overlong, tmp_path, tokenizer_folder, tokenizer
):
    text = "the cat sat on the mat and the dog sat on the log"
    (tmp_path / "a.txt").write_text(text)
    values = {"folder": str(tmp_path), "corpora": ["a.txt"], "length": 8, "held_out": 0.0}
    data = DataConfig.model_validate(values | {"overlong": overlong})
    found = load_corpora(data, tokenizer_folder, cache=None)
    n_tokens = len(tokenizer.encode(text)) + 1  # and one that ends it
    assert n_tokens > 9 and found.n_tokens == (8 if overlong == "truncate" else n_tokens)
