"""The tokenizer inside a GGUF file gives the ids of the tokenizer that it was made from."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.copies import copy_tokenizer, settings_digest, vocabulary_digest
from jspec.checkpoints.tokenizer.gguf import WORD_RULES
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from jspec.infer.command.cli import main
from tests.support.directories import CHAT_TEMPLATE
from tests.support.gguf_files import CONTROL, NORMAL, byte_level_metadata, convert, write_file
from tests.support.tokenizers import byte_level as byte_level
from tests.support.tokenizers import loaded
from tests.support.tokenizers import sentencepiece_folder as sentencepiece_folder

TEXTS = (
    "Hello world, it's 2024 and I've paid 1,234.50 dollars.",
    "  two  spaces,   three\n\nlines\r\n\ttab \u00a0nbsp   ",
    "def add(a, b):\n    return a + b  # don't\n\n\nclass X:\n\tpass",
    "Grüße aus Köln, naïve cafe\u0301, Ελληνικά, русский, العربية, हिन्दी",
    "日本語のテキスト 한국어 😀👩‍👩‍👧 ①②½ ﬁne",
    "I'LL we'Re DON'T 'tis x'y ... !!! ?! --- <> {}[]",
    "1234567890 3.14159 0x1F 12abc34 ٣٤٥",
    "a\x00b\u200b\ufeffc",
    "",
    " ",
    "\n",
)
MESSAGES = [{"role": "user", "content": "hi <|user|> there"}]
UNKNOWN, USER_DEFINED, UNUSED, BYTE = 2, 4, 5, 6
"""Types of tokens beside those that are most."""


def written(path: Path, metadata: dict) -> Path:
    kept = {key: value for key, value in metadata.items() if value is not None}
    return write_file(path, "llama", kept, {})


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{message}") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


# --- byte-level BPE ------------------------------------------------------------------------------


@pytest.fixture
def metadata(checkpoints) -> dict:
    """The tokenizer of the tiny chat model, which puts BOS before a text."""
    values = byte_level_metadata(
        checkpoints.chat / "tokenizer.json", bos_token_id=0, eos_token_id=1, add_bos_token=True
    )
    return values | {"tokenizer.chat_template": CHAT_TEMPLATE}


@pytest.fixture
def file(metadata, tmp_path) -> Path:
    return written(tmp_path / "m.gguf", metadata)


def test_ids_are_those_of_the_original(file, byte_level):
    tokenizer = loaded(file)
    for text in (*TEXTS, "a<|user|>b </s><s> c", "<s>x"):
        ids = tokenizer.encode(text)
        assert ids == byte_level.encode(text)
        assert tokenizer.decode(ids) == byte_level.decode(ids)
    assert tokenizer.special_ids == byte_level.special_ids
    assert (tokenizer.bos_id, tokenizer.eos_id) == (byte_level.bos_id, byte_level.eos_id)
    assert tokenizer.n_ids == byte_level.n_ids


def test_the_chat_template_is_the_files(file, metadata, byte_level, tmp_path):
    tokenizer = loaded(file)
    assert tokenizer.chat_text(MESSAGES) == byte_level.chat_text(MESSAGES)
    assert tokenizer.encode_chat(MESSAGES) == byte_level.encode_chat(MESSAGES)
    named = metadata | {"tokenizer.chat_template.tools": "{{ 'tools' }}"}
    several = written(tmp_path / "n.gguf", named)
    assert loaded(several).chat_text(MESSAGES) == byte_level.chat_text(MESSAGES)
    assert loaded(several, "tools").chat_text(MESSAGES) == "tools"
    bare = written(tmp_path / "b.gguf", metadata | {"tokenizer.chat_template": None})
    assert not loaded(bare).has_chat_template


def test_bos_and_eos_are_put_around_where_the_file_asks_for_it(metadata, tmp_path):
    def ids(**more) -> tuple[int, ...]:
        changed = metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
        return loaded(written(tmp_path / "m.gguf", changed)).encode("the cat")

    inner = ids(add_bos_token=False)
    assert ids(add_bos_token=True, add_eos_token=True) == (0, *inner, 1)
    assert ids(add_bos_token=None) == inner
    assert ids(add_bos_token=None, pre="llama-bpe")[0] == 0
    assert ids(add_bos_token=False, pre="llama-bpe")[0] != 0


def test_types_tell_what_is_found_in_a_text_and_what_has_no_text(metadata, tmp_path):
    types = list(metadata["tokenizer.ggml.token_type"])
    types[2], types[3] = USER_DEFINED, UNUSED
    tokenizer = loaded(
        written(tmp_path / "m.gguf", metadata | {"tokenizer.ggml.token_type": types})
    )
    assert tokenizer.encode("a<|system|>b")[2] == 2 and 2 not in tokenizer.special_ids
    assert 3 not in tokenizer.encode("a<|user|>b") and tokenizer.id_of("<|user|>") is None
    assert tokenizer.decode([2]) == "<|system|>" and tokenizer.decode([4]) == ""


def words(name: str, text: str) -> list[str]:
    return [word for word, _ in WORD_RULES[name].pre_tokenizer().pre_tokenize_str(text)]


def test_rules_cut_numbers_and_words_as_their_models_do():
    text = "I'LL pay 12345, it's ok\n\n x"
    end = ["Ġit", "'s", "Ġok"]
    assert words("gpt-2", text) == [*("I", "'", "LL", "Ġpay", "Ġ12345", ",", *end, "ĊĊ", "Ġx")]
    assert words("smollm", text) == [
        *("I", "'", "LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", ",", *end, "ĊĊ", "Ġx")
    ]
    assert words("llama-bpe", text) == [
        *("I", "'LL", "Ġpay", "Ġ", "123", "45", ",", *end, "ĊĊ", "Ġx")
    ]
    assert words("qwen2", text) == [
        *("I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", ",", *end, "ĊĊ", "Ġx")
    ]


def test_patterns_are_those_that_transformers_knows():
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    llama3 = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    for name, pattern in (("llama-bpe", llama3), ("qwen2", PRETOKENIZE_REGEX)):
        bytes_of = ByteLevel(add_prefix_space=False, use_regex=False)
        theirs = Sequence([Split(Regex(pattern), "isolated"), bytes_of])
        for text in TEXTS:
            assert words(name, text) == [word for word, _ in theirs.pre_tokenize_str(text)]


def test_qwen2_composes_characters_first(metadata, tmp_path):
    def ids(pre: str, text: str) -> tuple[int, ...]:
        file = written(tmp_path / "m.gguf", metadata | {"tokenizer.ggml.pre": pre})
        return loaded(file).encode(text)

    assert ids("qwen2", "e\u0301") == ids("qwen2", "é")
    assert ids("llama-bpe", "e\u0301") != ids("llama-bpe", "é")


def test_llama3_takes_a_word_whole_that_no_merge_makes(metadata, tmp_path):
    tokens = [*metadata["tokenizer.ggml.tokens"], "xqz"]
    types = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}

    def ids(pre: str) -> tuple[int, ...]:
        file = written(tmp_path / "m.gguf", metadata | more | {"tokenizer.ggml.pre": pre})
        return loaded(file).encode("xqz")[1:]

    assert ids("llama-bpe") == (len(tokens) - 1,) and len(ids("qwen2")) == 3


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_that_names_no_rule_is_read_as_gpt_2s_with_a_warning(
    pre, metadata, byte_level, tmp_path, caplog
):
    file = written(tmp_path / "m.gguf", metadata | {"tokenizer.ggml.pre": pre})
    with caplog.at_level(logging.WARNING):
        assert loaded(file).encode(TEXTS[0]) == byte_level.encode(TEXTS[0])
    assert "does not name a rule" in caplog.text


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"pre": "tekken"}, "'tekken' .* not supported; known: default, gpt-2, llama-bpe, llama3,"),
        ({"model": "t5"}, "kind 't5' is not supported; known: gpt2, llama"),
        ({"merges": None}, "tokenizer.ggml.merges must be a list, got nothing"),
        ({"merges": ["a b c"]}, "merge 'a b c' must be of two pieces"),
        ({"merges": ["q zzzz"]}, "the tokenizer cannot be read"),
        ({"token_type": [1, 1]}, "tokens with 2 types"),
        ({"bos_token_id": 99999}, "bos_token_id 99999 is none of 320 tokens"),
    ],
)
def test_faults_are_named(changes, told, metadata, tmp_path):
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    refused(written(tmp_path / "m.gguf", metadata | changes), told)


@pytest.mark.parametrize("kind", [None, "no_vocab"])
def test_a_file_without_a_tokenizer_has_none(kind, metadata, tmp_path):
    file = written(tmp_path / "m.gguf", metadata | {"tokenizer.ggml.model": kind})
    assert load_tokenizer(file) is None


def test_a_directory_is_a_drafter_of_a_file_with_its_vocabulary(checkpoints, metadata, tmp_path):
    copied = checkpoints.copy("chat", tmp_path)
    target = load_target(convert(copied, tmp_path / "m.gguf", "llama", more=metadata))
    load_beside(target, checkpoints.small)
    swapped = metadata["tokenizer.ggml.tokens"].copy()
    swapped[70], swapped[71] = swapped[71], swapped[70]
    more = metadata | {"tokenizer.ggml.tokens": swapped}
    other = load_target(convert(copied, tmp_path / "o.gguf", "llama", more=more))
    with pytest.raises(UserError, match="the drafter's tokenizer is not the target's"):
        load_beside(other, checkpoints.small)


def test_a_copy_beside_a_checkpoint_is_the_same_tokenizer(file, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    copy_tokenizer(file, folder)
    one, other = loaded(file), loaded(folder)
    for text in (*TEXTS, "a<|user|>b"):
        assert other.encode(text) == one.encode(text)
    assert other.chat_text(MESSAGES) == one.chat_text(MESSAGES)
    assert (other.names, other.special_ids) == (one.names, one.special_ids)


def test_digests_tell_tokenizers_apart(file, metadata, tmp_path):
    again = shutil.copy(file, tmp_path / "again.gguf")
    other = written(tmp_path / "o.gguf", metadata | {"tokenizer.ggml.pre": "qwen2"})
    for digest in (vocabulary_digest, settings_digest):
        assert digest(file) == digest(Path(again)) != digest(other)


# --- SentencePiece -------------------------------------------------------------------------------


def sentencepiece_metadata(path: Path, **more) -> dict:
    """What a converter writes of a `tokenizer.model`."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())

    def kind(i: int) -> int:
        checks = {UNKNOWN: model.is_unknown, CONTROL: model.is_control, BYTE: model.is_byte}
        return next((kind for kind, check in checks.items() if check(i)), NORMAL)

    values = {
        "model": "llama",
        "pre": "default",
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": [float(np.float32(model.get_score(i))) for i in ids],
        "token_type": [kind(i) for i in ids],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | more).items()}


SPECIAL_TEXTS = (*TEXTS, "a</s>b", "<s> x </s><s>y", "日\u0007")


def test_pieces_with_scores_split_as_sentencepiece_does(sentencepiece_folder, tmp_path):
    original = loaded(sentencepiece_folder)
    path = sentencepiece_folder / "tokenizer.model"
    tokenizer = loaded(written(tmp_path / "m.gguf", sentencepiece_metadata(path)))
    for text in SPECIAL_TEXTS:
        assert tokenizer.encode(text) == original.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text))
    assert tokenizer.byte_ids == original.byte_ids and len(tokenizer.byte_ids) == 256
    assert (tokenizer.names, tokenizer.n_ids) == (original.names, original.n_ids)
    assert tokenizer.special_ids == original.special_ids


def test_a_space_is_put_before_a_text_unless_the_file_says_no(sentencepiece_folder, tmp_path):
    path = sentencepiece_folder / "tokenizer.model"

    def ids(text: str, **more) -> tuple[int, ...]:
        return loaded(written(tmp_path / "m.gguf", sentencepiece_metadata(path, **more))).encode(
            text
        )

    with_space = ids("the cat")
    assert ids(" the cat", add_space_prefix=False) == with_space
    assert ids("the cat", add_space_prefix=False) != with_space
    assert ids("the cat", add_bos_token=False) == with_space[1:]
    assert ids("the cat", add_eos_token=True) == (*with_space, 2)


def test_lists_of_pieces_must_fit(sentencepiece_folder, tmp_path):
    path = sentencepiece_folder / "tokenizer.model"
    refused(
        written(tmp_path / "m.gguf", sentencepiece_metadata(path, scores=[0.0])),
        "tokens with 1 scores",
    )


def test_a_copied_model_of_pieces_is_the_same_tokenizer(sentencepiece_folder, tmp_path):
    file = written(
        tmp_path / "m.gguf", sentencepiece_metadata(sentencepiece_folder / "tokenizer.model")
    )
    folder = tmp_path / "copy"
    folder.mkdir()
    copy_tokenizer(file, folder)
    one, other = loaded(file), loaded(folder)
    assert [other.encode(text) for text in SPECIAL_TEXTS] == [
        one.encode(text) for text in SPECIAL_TEXTS
    ]


# --- published vocabularies ----------------------------------------------------------------------


def test_gpt_2s_ids(shared_data, tmp_path):
    from transformers import GPT2Tokenizer

    folder = shared_data / "tokenizers/gpt2"
    shutil.copy(folder / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(folder / "vocab.bpe", tmp_path / "merges.txt")
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path))
    pieces = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    tokens = sorted(pieces, key=pieces.__getitem__)
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [CONTROL if t == "<|endoftext|>" else NORMAL for t in tokens],
        "merges": merges,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    tokenizer = loaded(written(tmp_path / "m.gguf", metadata))
    for text in (*TEXTS, "one<|endoftext|>two", Path(__file__).read_text(encoding="utf-8")):
        ids = tokenizer.encode(text)
        assert list(ids) == theirs.encode(text)
        assert tokenizer.decode(ids, with_special=True) == text


def test_llama_2s_ids(shared_data, tmp_path):
    path = shared_data / "tokenizers/llama2/tokenizer.model"
    original = loaded(path.parent)
    tokenizer = loaded(written(tmp_path / "m.gguf", sentencepiece_metadata(path)))
    for text in (*SPECIAL_TEXTS, Path(__file__).read_text(encoding="utf-8")):
        assert tokenizer.encode(text) == original.encode(text)


# --- a whole command -----------------------------------------------------------------------------


def test_a_command_answers_from_files_as_from_directories_and_goes_on(
    checkpoints, metadata, tmp_path, capsys
):
    """Target and drafter are files; answers are kept under a digest of them."""
    files = {}
    for name in ("chat", "small"):
        directory = checkpoints.copy(name, tmp_path)
        files[directory] = convert(directory, tmp_path / f"{name}.gguf", "llama", more=metadata)
    flags = ["--prompt", "the cat", "--max-new-tokens", "12", "--drafter", "draft-model"]

    def texts(target: Path, drafter: Path, *more: str) -> list[str]:
        models = ["--target", str(target), "--drafter-path", str(drafter)]
        assert main([*models, *flags, "--json", *more]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [record["text"] for record in records if "text" in record]

    kept = ["--output", str(tmp_path / "answers.jsonl")]
    from_files = texts(*files.values(), *kept)
    assert from_files == texts(*files) and len(from_files) == 1
    assert texts(*files.values(), *kept) == []  # it is answered
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    again = files[tmp_path / "small"]
    stranger = ["--target", str(again), "--drafter-path", str(again), *flags, *kept]
    assert main(stranger) == 2 and "answered with other target" in capsys.readouterr().err
