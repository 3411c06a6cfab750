"""A copy as a Hugging Face directory is the same model and the same tokenizer."""

from __future__ import annotations

import json

import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.export import write_copy
from jspec.checkpoints.target import load_target
from tests.support.gguf_files import byte_level_metadata, convert
from tests.support.pytrees import assert_same
from tests.support.tokenizers import loaded


@pytest.mark.parametrize("is_gguf", [True, False])
def test_a_copy_is_the_same_model_and_tokenizer(is_gguf, checkpoints, tmp_path):
    source = original = checkpoints.copy("chat", tmp_path)
    if is_gguf:
        ids = {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True}
        more = byte_level_metadata(original / "tokenizer.json", **ids)
        source = convert(original, tmp_path / "m.gguf", "llama", kind="F16", more=more)
    write_copy(find_checkpoint(source), tmp_path / "copy")
    one, other = load_target(original), load_target(tmp_path / "copy")
    assert (other.model, other.stop_ids) == (one.model, one.stop_ids)
    assert_same(other.params, one.params)
    text = "the cat sat <|user|> über 12"
    assert loaded(tmp_path / "copy").encode(text) == loaded(original).encode(text)
    written = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert written["bos_token_id"] == 0 and written["dtype"] == "float32"
