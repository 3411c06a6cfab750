"""Tokenizers of directories, and conversations through chat templates."""

from __future__ import annotations

import random
import shutil

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from tests.support.directories import write_tokenizer
from tests.support.tokenizers import SENTENCES, loaded
from tests.support.tokenizers import byte_level as byte_level
from tests.support.tokenizers import sentencepiece_folder as sentencepiece_folder


def test_a_model_file_alone_splits_text_as_sentencepiece_does(sentencepiece_folder):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = loaded(sentencepiece_folder)
    draw = random.Random(1)
    words = ["the", "cat", "  ", "   ", " ", "\n", "day", "süße", "😀", "named", "a", "(b)"]
    texts = [*SENTENCES, *("x" + "".join(draw.choices(words, k=9)) for _ in range(300))]
    for text in texts:
        assert tokenizer.encode(text) == (1, *reference.encode(text))


def test_bos_follows_the_tokenizer_config(sentencepiece_folder, tmp_path):
    shutil.copy(sentencepiece_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_bos_token": false, "tokenizer_class": "LlamaTokenizer"}'
    )
    assert 1 not in loaded(tmp_path).encode("The cat")


def test_a_folder_without_tokenizer_files_has_none(checkpoints):
    assert load_tokenizer(checkpoints.bare) is None
    assert load_tokenizer(None) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_broken_tokenizer_files_are_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x0a\xffnonsense")
    with pytest.raises(UserError) as refused:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


# --- chat ----------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_template_that_writes_bos_does_not_get_another(byte_level):
    tokens = byte_level.encode_chat(MESSAGES)
    expected = byte_level.encode("<|user|>hi<|assistant|>")
    assert tokens == expected
    assert tokens.count(0) == 1


def test_a_template_of_the_user_gets_the_bos_it_leaves_out(checkpoints):
    tokenizer = loaded(checkpoints.chat, "{{ messages[0].content }}")
    assert tokenizer.encode_chat(MESSAGES) == tokenizer.encode("hi")


def test_a_template_of_the_tokenizer_knows_whether_its_model_wants_bos(tmp_path):
    write_tokenizer(tmp_path, "{{ messages[0].content }}")
    tokenizer = loaded(tmp_path)
    assert (tokenizer.bos_id, *tokenizer.encode_chat(MESSAGES)) == tokenizer.encode("hi")


@pytest.mark.parametrize(
    ("template", "said"),
    [("{{ nothing.at.all }}", "cannot be filled in"), ("{% if %}", "cannot be filled in")],
)
def test_templates_that_fail_are_one_line(checkpoints, template, said):
    tokenizer = loaded(checkpoints.chat, template)
    with pytest.raises(UserError, match=said) as refused:
        tokenizer.encode_chat(MESSAGES)
    assert "\n" not in str(refused.value)


def test_the_vicuna_template_writes_its_published_format(sentencepiece_folder):
    from jspec.config import find_config, read_yaml

    template = read_yaml(find_config("vicuna"))["chat_template"]
    tokenizer = loaded(sentencepiece_folder, template)
    conversation = [
        {"role": "system", "content": "The rules."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye."},
    ]
    tokens = tokenizer.encode_chat(conversation)
    said = "The rules. USER: Hello! ASSISTANT: Hi.</s>USER: Bye. ASSISTANT:"
    assert tokens == tokenizer.encode(said)
    assert tokens.count(1) == 1 and tokens.count(2) == 1
