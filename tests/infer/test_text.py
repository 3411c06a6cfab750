"""Tokenizers, and text that grows: nothing shown is ever taken back, and nothing is lost."""

from __future__ import annotations

import random
import shutil

import pytest

from jspec.checkpoints.tokenizer.sentencepiece import read_model
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.errors import UserError
from jspec.infer.text_stream import TextStream
from tests.infer.conftest import write_tokenizer

SENTENCES = (
    "The cat sat on the mat.",
    "It was  warm   and    the dog slept.",
    "Über süße Äpfel sprach man in Köln.",
    "def add(a, b):\n    return a + b\n",
    "One day a little girl named Lily went to the park.",
)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory):
    """A folder with nothing but `tokenizer.model`: byte fallback, whole runs of spaces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    add_runs_of_spaces(folder / "tokenizer.model")
    return folder


def add_runs_of_spaces(path) -> None:
    """As Llama's model has them: pieces of a score below that of any word."""
    model = read_model(path)
    assert model is not None
    for length in (2, 4, 8):
        run = model.pieces.add()
        run.piece, run.score, run.type = "▁" * length, -1e9, 1
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def byte_level(checkpoints):
    return loaded(checkpoints.chat)


def loaded(folder, template=None) -> Tokenizer:
    tokenizer = load_tokenizer(folder, template)
    assert tokenizer is not None
    return tokenizer


def streamed(tokenizer, ids, *, chunks, stops=(), stop_ids=()):
    """The text as shown piece by piece, the tokens kept, and the stream itself."""
    stream = TextStream(tokenizer, stop_ids=stop_ids, stops=stops)
    shown, done = [], 0
    keep = None
    while done < len(ids) and keep is None:
        done = min(done + chunks(), len(ids))
        keep = stream.advance(ids[:done])
        shown.append(stream.take())
    shown.append(stream.finish())
    return "".join(shown), keep, stream


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_streamed_text_is_what_the_tokenizer_decodes(kind, byte_level, request):
    folder = request.getfixturevalue("sentencepiece_folder")
    tokenizer = byte_level if kind == "byte_level" else loaded(folder)
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.n_ids) for _ in range(draw.randint(1, 24))]
        text, keep, _ = streamed(tokenizer, ids, chunks=lambda: draw.randint(1, 4))
        assert keep is None
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_incomplete_characters_are_held_back(kind, byte_level, request):
    folder = request.getfixturevalue("sentencepiece_folder")
    tokenizer = byte_level if kind == "byte_level" else loaded(folder)
    ids = [i for i in tokenizer.encode("a😀b") if i not in tokenizer.special_ids]
    stream = TextStream(tokenizer, stop_ids=())
    shown = []
    for count in range(1, len(ids) + 1):
        stream.advance(ids[:count])
        shown.append(stream.take())
    assert len(ids) > 3
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + stream.finish() == "a😀b"


def test_an_answer_that_ends_in_half_a_character_says_so(byte_level):
    ids = [i for i in byte_level.encode("😀") if i not in byte_level.special_ids][:-1]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1)
    assert text == byte_level.decode(ids) and text.startswith("\ufffd")


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_stop_string_ends_text_and_tokens_at_the_same_place_for_any_chunk(byte_level, chunk):
    ids = byte_level.encode("the cat sat on the mat and the dog sat")[1:]
    text, keep, _ = streamed(byte_level, ids, chunks=lambda: chunk, stops=("on the m", "dog"))
    assert text == "the cat sat "
    assert "on the m" in byte_level.decode(ids[:keep])
    assert keep is not None and "on the m" not in byte_level.decode(ids[: keep - 1])


def test_the_beginning_of_a_stop_string_is_never_shown_before_it_is_known_not_to_be_one(byte_level):
    ids = byte_level.encode("xxSTOxxSTOP!")[1:]
    stream = TextStream(byte_level, stop_ids=(), stops=("STOP",))
    shown, keep = "", None
    for count in range(1, len(ids) + 1):
        keep = stream.advance(ids[:count])
        shown += stream.take()
        assert not any(shown.endswith("STOP"[:n]) for n in range(1, 5))
        if keep is not None:
            break
    assert shown + stream.finish() == "xxSTOxx" == stream.text
    assert byte_level.decode(ids[:keep]).startswith("xxSTOxxSTOP")


def test_what_is_held_back_comes_out_at_the_end(byte_level):
    ids = byte_level.encode("wait SS")[1:]
    stream = TextStream(byte_level, stop_ids=(), stops=("SSTOP",))
    stream.advance(ids)
    assert stream.take() == "wait "
    assert stream.finish() == "SS"


def test_of_two_stop_strings_the_one_that_is_complete_first_wins(byte_level):
    ids = byte_level.encode("abcdef")[1:]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1, stops=("bcde", "cd"))
    assert text == "ab"


def test_of_two_stop_strings_that_are_complete_together_the_longer_wins(byte_level):
    ids = byte_level.encode("abcdef")[1:]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1, stops=("d", "bcd"))
    assert text == "a"


def test_a_stop_token_has_no_text_and_completes_no_stop_string(byte_level):
    letters = byte_level.encode("ab")[1:]
    text, keep, _ = streamed(
        byte_level, (*letters, letters[-1]), chunks=lambda: 9, stops=("bb",), stop_ids=letters[-1:]
    )
    assert (text, keep) == ("a", None) or "b" not in text
    assert keep is None


def test_special_tokens_have_no_text(byte_level):
    ids = byte_level.encode("a")
    assert ids[0] == 0 and byte_level.decode(ids) == "a"


# --- directories ---------------------------------------------------------------------------------


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
