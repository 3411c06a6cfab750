"""Token ids are those of the vocabulary's own library, whatever class the config names."""

from __future__ import annotations

import json
import random
import shutil
from typing import Any

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from tests.support.directories import CHAT_TEMPLATE
from tests.support.tokenizers import SENTENCES, loaded

WORDS = (
    "the",
    "run",
    " ",
    "  ",
    "   ",
    "\n",
    "\t",
    "▁",
    "süße",
    "日本語",
    "①",
    "ﬁne",
    "<sym>",
    "😀",
)
MESSAGES = [{"role": "user", "content": "hi there"}]
CLASSES = ("LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "Unheard", None, 7)


def some_texts(n: int, words=WORDS, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(n)]


def write_config(folder, **values) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")


# --- tokenizer.json ------------------------------------------------------------------------------


@pytest.fixture
def folder(checkpoints, tmp_path):
    """A byte-level `tokenizer.json` that puts BOS before a text, and its config."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints.chat / name, tmp_path)
    return tmp_path


def changed(folder, **values) -> None:
    path = folder / "tokenizer_config.json"
    write_config(folder, **(json.loads(path.read_text(encoding="utf-8")) | values))


def reference(folder):
    from tokenizers import Tokenizer as Backend

    return Backend.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", CLASSES)
def test_the_json_file_decides_whatever_class_the_config_names(folder, name):
    changed(folder, tokenizer_class=name, chat_template=CHAT_TEMPLATE, add_prefix_space=True)
    tokenizer, backend = loaded(folder), reference(folder)
    for text in some_texts(100):
        ids = tokenizer.encode(text)
        assert list(ids) == backend.encode(text).ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.encode_chat(MESSAGES) == tokenizer.encode("<|user|>hi there<|assistant|>")


def test_a_class_with_code_of_its_own_is_not_asked_for(folder):
    changed(folder, auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    assert list(loaded(folder).encode("the cat")) == reference(folder).encode("the cat").ids


def test_the_json_file_alone_is_enough_and_the_models_config_names_bos(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1, 3]}')
    tokenizer = loaded(folder, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.encode_chat(MESSAGES) == (*tokenizer.encode("hi there"), 1)
    changed_to_null = {"bos_token": None, "eos_token": "</s>"}
    write_config(folder, **changed_to_null)
    assert loaded(folder).bos_id is None and loaded(folder).eos_id == 1


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("role", ["bos", "eos"])
def test_the_json_files_own_bos_and_eos_win_and_a_difference_is_told(folder, role, wanted, caplog):
    changed(folder, **{f"add_{role}_token": wanted})
    tokenizer = loaded(folder)
    assert list(tokenizer.encode("the cat")) == reference(folder).encode("the cat").ids
    assert (f"add_{role}_token" in caplog.text) == (wanted != (role == "bos"))


def test_a_prompt_is_never_cut_or_padded(folder):
    backend = reference(folder)
    whole = backend.encode("the cat sat on the mat").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    assert list(loaded(folder).encode("the cat sat on the mat")) == whole


def test_special_tokens_come_from_the_config(folder):
    cat = reference(folder).encode("the", add_special_tokens=False).ids
    for named in (["the"], "the", {"end": "the"}, [{"content": "the"}]):
        changed(folder, additional_special_tokens=named, eos_token=None)
        assert loaded(folder).special_ids == {*cat, *range(5)}
    changed(folder, eos_token={"content": "the"})
    tokenizer = loaded(folder)
    assert [tokenizer.eos_id] == cat and tokenizer.special_ids >= {*cat, 0}
    assert tokenizer.decode([*cat, *tokenizer.encode("x")]) == "x"


def test_ids_outside_the_vocabulary_have_no_text(folder, unigram):
    for tokenizer in (loaded(folder), loaded(unigram)):
        ids = tokenizer.encode("a")
        assert tokenizer.decode([*ids, 10_000]) == "a" and tokenizer.n_ids < 10_000


def test_half_a_character_is_refused(folder, unigram):
    for tokenizer in (loaded(folder), loaded(unigram)):
        with pytest.raises(UserError, match="surrogate"):
            tokenizer.encode("a\ud800")


def test_a_byte_order_mark_is_no_part_of_the_json_file(folder):
    expected = reference(folder).encode("the cat").ids
    path = folder / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(loaded(folder).encode("the cat")) == expected


@pytest.mark.parametrize("letters", ["a", "xy"])
def test_what_is_put_around_a_text_is_found_in_any_vocabulary(tmp_path, letters):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, processors

    ids = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(letters, 2)}
    backend: Any = Backend(models.BPE(ids, []))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    vocabulary = loaded(tmp_path).vocabulary
    assert (vocabulary.before, vocabulary.after) == ((0,), (1,))


# --- vocab.json and merges.txt -------------------------------------------------------------------


@pytest.fixture
def listed(folder):
    """The byte-level pieces as GPT-2's own files list them."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    (folder / "tokenizer.json").rename(folder / "kept.json")
    return folder


@pytest.mark.parametrize("name", [*CLASSES, "GPT2Tokenizer"])
def test_listed_pieces_are_split_as_gpt_2_does_where_the_class_does_not_read_them(
    listed, name, caplog
):
    from tokenizers import Tokenizer as Backend

    changed(listed, tokenizer_class=name, add_bos_token=True)
    tokenizer, backend = loaded(listed), Backend.from_file(str(listed / "kept.json"))
    for text in ["the cat sat", " the  run", "süße 日本\n\n"]:
        assert list(tokenizer.encode(text)) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1) and {0, 1} <= tokenizer.special_ids
    assert ("read as GPT-2's" in caplog.text) == (name not in ("GPT2Tokenizer", "Qwen2Tokenizer"))


def test_listed_pieces_read_as_gpt_2s_keep_their_ids(listed):
    from tokenizers import Tokenizer as Backend

    size = Backend.from_file(str(listed / "kept.json")).get_vocab_size()
    changed(listed, tokenizer_class=None)
    assert loaded(listed).n_ids == size
    entry = {"content": "<new>", "special": True}
    changed(listed, added_tokens_decoder={str(size): entry})
    tokenizer = loaded(listed)
    assert tokenizer.id_of("<new>") == size and size in tokenizer.special_ids
    changed(listed, added_tokens_decoder={"400": entry})
    with pytest.raises(UserError, match=f"'<new>' has id 400, which would be {size}; add a"):
        loaded(listed)


def test_listed_pieces_that_nobody_reads_are_refused(listed):
    changed(listed, tokenizer_class="LlamaTokenizer")
    (listed / "merges.txt").unlink()
    with pytest.raises(UserError, match="does not read vocab.json"):
        load_tokenizer(listed)


def test_gpt_2_has_its_own_ids_without_a_word_of_its_class(shared_data, tmp_path):
    for name, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(shared_data / "tokenizers" / "gpt2" / name, tmp_path / ours)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 50256}')
    tokenizer = loaded(tmp_path)
    assert tokenizer.encode("Hello world, it's\n") == (15496, 995, 11, 340, 338, 198)
    assert tokenizer.encode("hi<|endoftext|>") == (5303, 50256) and tokenizer.eos_id == 50256


# --- tokenizer.model -----------------------------------------------------------------------------


def train(folder, **options) -> None:
    """A model of which SentencePiece's own program made the pieces."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    corpus = [*SENTENCES, "ﬁne café ① run\tand  <sym> run", "日本語"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        user_defined_symbols=["<sym>"],
        hard_vocab_limit=False,
        minloglevel=2,
        **({"vocab_size": 400, "byte_fallback": True} | options),
    )
    (folder / "tokenizer.vocab").unlink()


KINDS = {
    "bpe": dict(model_type="bpe", normalization_rule_name="identity"),
    "bpe that drops spaces": dict(model_type="bpe", remove_extra_whitespaces=True),
    "unigram": dict(model_type="unigram", remove_extra_whitespaces=False),
    "unigram that drops spaces": dict(model_type="unigram", byte_fallback=False, vocab_size=150),
    "characters": dict(model_type="char", byte_fallback=False, vocab_size=100),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kind")
    options: dict = {"remove_extra_whitespaces": False} | KINDS[request.param]
    if "drops" in request.param:
        options["remove_extra_whitespaces"] = True
    for has_prefix in (True, False):
        train(folder / str(has_prefix), add_dummy_prefix=has_prefix, **options)
    return folder


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unigram")
    train(folder, model_type="unigram", remove_extra_whitespaces=False)
    return folder


def processor(folder, **spec):
    """SentencePiece with the file, and with fields of its normalizer changed."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    for name, value in spec.items():
        setattr(model.normalizer_spec, name, value)
    return SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.mark.parametrize("has_prefix", [True, False])
def test_a_model_file_splits_as_sentencepiece_does(kind, has_prefix):
    folder = kind / str(has_prefix)
    tokenizer, own = loaded(folder), processor(folder)
    for text in some_texts(150):
        assert list(tokenizer.encode(text)) == [1, *own.encode(text)]
        ids = own.encode(text)
        assert tokenizer.decode(ids) == own.decode([i for i in ids if i != own.unk_id()])


@pytest.mark.parametrize("said", [True, False])
def test_what_the_config_says_of_a_first_space_wins(kind, said):
    for has_prefix in (True, False):
        folder = kind / str(has_prefix)
        write_config(folder, add_prefix_space=said)
        tokenizer, own = loaded(folder), processor(folder, add_dummy_prefix=said)
        (folder / "tokenizer_config.json").unlink()
        for text in some_texts(40):
            assert list(tokenizer.encode(text)) == [1, *own.encode(text)]


@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_text_after_a_special_token_begins_as_legacy_says(kind, legacy):
    """By the rule of `transformers`: what SentencePiece gives behind `<unk>`, where it is false."""
    folder = kind / "True"
    write_config(folder, legacy=legacy, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer, own = loaded(folder), processor(folder)
    bare = processor(folder, add_dummy_prefix=False)
    (folder / "tokenizer_config.json").unlink()
    before = len(bare.encode("<unk>"))

    def split(text: str) -> list[int]:
        if legacy is not False:
            return own.encode(text)
        if text.startswith((" ", "▁")):
            return bare.encode("<unk>" + text.replace("▁", " "))[before:]
        return bare.encode(text)

    for first, second in zip(some_texts(60), some_texts(60, seed=1), strict=True):
        expected = [1, *own.encode(first), 2, *split(second), 2]
        assert list(tokenizer.encode(f"{first}</s>{second}</s>")) == expected
        assert list(tokenizer.encode(f"<s>{second}")) == [1, *split(second)]


def test_spans_are_the_characters_of_each_token(kind):
    folder = kind / "True"
    tokenizer = loaded(folder)
    for text in some_texts(60, words=[word for word in WORDS if word not in "▁①ﬁne"]):
        text = f"{text}</s>x{text}"
        [pieces] = tokenizer.pieces([text])
        ends = [0, *(end for _, end in pieces.spans)]
        assert all(a <= start <= end for a, (start, end) in zip(ends, pieces.spans, strict=False))
        place = pieces.ids.index(2)
        assert text[slice(*pieces.spans[place])] == "</s>"
        assert "".join(text[slice(*span)] for span in pieces.spans[place:]) in text


def test_bos_eos_and_added_tokens_follow_the_config(unigram, tmp_path):
    shutil.copy(unigram / "tokenizer.model", tmp_path)
    own = processor(unigram)
    size = own.get_piece_size()
    added = {
        str(size): {"content": "<|end|>", "special": True, "lstrip": True},
        str(size + 1): {"content": "<note>", "special": False},
    }
    write_config(tmp_path, add_bos_token=False, add_eos_token=True, added_tokens_decoder=added)
    tokenizer = loaded(tmp_path)
    hi = own.encode("hi")
    assert list(tokenizer.encode("hi  <|end|>hi<note>")) == [*hi, size, *hi, size + 1, 2]
    assert tokenizer.decode([*hi, size, size + 1]) == "hi<note>"
    assert (tokenizer.id_of("<|end|>"), tokenizer.n_ids) == (size, size + 2)
    write_config(tmp_path, bos_token=None)
    assert list(loaded(tmp_path).encode("hi")) == hi


def test_the_models_own_special_tokens_stay_special_in_a_list_of_added_ones(unigram, tmp_path):
    shutil.copy(unigram / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<unk>": 0, "<s>": 1, "</s>": 2, "<new>": 900}')
    tokenizer = loaded(tmp_path)
    assert tokenizer.special_ids == {0, 1, 2} and tokenizer.decode([1, 2, 900]) == "<new>"


def test_a_model_whose_spaces_follow_words_is_refused(tmp_path):
    train(tmp_path, model_type="unigram", treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match="treat_whitespace_as_suffix.* tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_model_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as tiktoken writes them
    with pytest.raises(UserError, match="tokenizer.model: no SentencePiece model"):
        load_tokenizer(tmp_path)


def test_llama_2_splits_as_sentencepiece_does(shared_data):
    folder = shared_data / "tokenizers" / "llama2"
    tokenizer, own = loaded(folder), processor(folder)
    for text in (*SENTENCES, *some_texts(200)):
        assert list(tokenizer.encode(text)) == [1, *own.encode(text)]
