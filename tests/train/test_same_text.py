"""A conversation is the same tokens in training and in decoding, up to what the model says next.

With the tokenizers of Llama 2 (`tokenizer.model`, `legacy` true and false) and of the demo, through
the templates of the ready configs.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jspec.checkpoints.hub import shipped
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import InferConfig, LineConfig, find_config, read_yaml, resolve
from jspec.console.prompts import Conversation
from jspec.console.reader import Reader
from jspec.train.config import CorpusConfig, DataConfig, FalconConfig
from jspec.train.corpus import CorpusRow, Tally
from jspec.train.data import training_rows
from jspec.train.encode import encode_rows

TRAINED_FOR = {
    "falcon_vicuna": ("vicuna", "vicuna_7b_falcon"),
    "falcon_vicuna_13b": ("vicuna", "vicuna_13b_falcon"),
    "falcon_llama2": ("llama2_chat_7b", "llama2_chat_7b_falcon"),
}
"""Configs that decode with what a recipe trains."""

LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + m['content'].strip()"
    " + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""That of Llama 2 Chat: BOS is in the text, once a turn."""

TURNS = (
    ["Hi!", "Hello, how can I help?"],
    ["  two  spaces ", "\n\n  code:\n    x = 1\n", "and then?", "1. one\n2. two"],
    ["süß 😀 日本語", "ü", "</s> is a token", "so is <s>", "ok", ":) 42"],
    ["why?", "", "again", "ASSISTANT: no"],
)


@functools.cache
def recipe(name: str) -> FalconConfig:
    values = read_yaml(find_config(name))
    return resolve(FalconConfig, [(name, values)])


@pytest.fixture(scope="module", params=["legacy: false", "legacy: true", "nothing said"])
def llama2(request, shared_data, tmp_path_factory) -> Path:
    """A directory as Vicuna and Llama 2 are published, with the real model."""
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copyfile(shared_data / "tokenizers/llama2/tokenizer.model", folder / "tokenizer.model")
    config = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if request.param != "nothing said":
        config |= yaml.safe_load(request.param)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def check(tokenizer: Tokenizer, turns: list[str], system: str | None, loss_on="assistant") -> None:
    """What every prompt is in decoding is how the row begins in training; answers are learnt."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))
    tally = Tally()
    rows = [CorpusRow(id="row", messages=messages)]
    [row] = encode_rows(rows, tokenizer, loss_on=loss_on, system=system, tally=tally)
    assert tally.lines() == []
    reader = Reader(tokenizer=tokenizer, max_length=10**6, vocab_size=10**6)
    line = LineConfig(system=system)
    asked = Conversation(id=1, where="", turns=tuple(turns[::2]), settings=line)
    learnt = np.zeros(len(row.tokens), bool)
    for i in range(len(turns) // 2):
        prompt = reader.next_tokens(asked, turns[1 : 2 * i : 2])
        assert tuple(row.tokens[: len(prompt)]) == prompt
        whole = (
            reader.next_tokens(asked, turns[1 : 2 * i + 2 : 2]) if 2 * i + 2 < len(turns) else ()
        )
        upto = min(len(whole), len(row.tokens)) or len(row.tokens)
        assert row.weights[len(prompt)] == 1 and not row.weights[len(prompt) - 1]
        learnt[len(prompt) : upto] = True
    assert not row.weights[~learnt].any()
    spoken, said = tokenizer.decode(row.tokens[row.weights > 0].tolist()), " ".join(turns[1::2])
    # Special tokens that are spoken of have no text, with tokenizers whose they are.
    spoken, said = (re.sub(r"</?s>|\s", "", text) for text in (spoken, said))
    assert spoken == said


@pytest.mark.parametrize("turns", TURNS, ids=range(len(TURNS)))
@pytest.mark.parametrize("name", ["falcon_vicuna", "llama2"])
def test_training_reads_what_decoding_does_with_llama2s_tokenizer(llama2, name, turns):
    data = recipe("falcon_vicuna").data
    template = data.chat_template if name == "falcon_vicuna" else LLAMA2_TEMPLATE
    tokenizer = load_tokenizer(llama2, template)
    assert tokenizer is not None
    check(tokenizer, turns, data.system)
    if name == "llama2":
        check(tokenizer, turns, None)


def test_vicunas_conversations_begin_with_one_bos_and_a_whole_word(llama2):
    """`<s>`, then "▁A chat between a curious user", as FastChat's Vicuna was trained."""
    data = recipe("falcon_vicuna").data
    tokenizer = load_tokenizer(llama2, data.chat_template)
    assert tokenizer is not None
    row = CorpusRow(id="a", messages=({"role": "user", "content": "Hi"},))
    [row] = encode_rows([row], tokenizer, loss_on="assistant", system=data.system)
    assert row.tokens[:7].tolist() == [1, 319, 13563, 1546, 263, 12758, 1404]


@pytest.mark.parametrize("turns", TURNS, ids=range(len(TURNS)))
def test_training_reads_what_decoding_does_with_the_demos_tokenizer(turns):
    turns = [turn.lstrip("\n") for turn in turns]  # joined to the prompt, see below
    tokenizer = load_tokenizer(shipped("demo/target"))
    assert tokenizer is not None
    check(tokenizer, turns, None)
    check(tokenizer, turns, "be kind")


WORDS = st.text(st.sampled_from("ab Z1.:'\nü😀▁"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(WORDS, min_size=2, max_size=6))
@example(turns=["\n", "\n\n", " ", " 1"])
def test_whatever_is_said_the_prompts_are_the_same(shared_data, turns):
    """Templates that trim; others may join an answer to its prompt, which is counted."""
    folder = shared_data / "tokenizers/llama2"
    tokenizer = load_tokenizer(folder, recipe("falcon_vicuna").data.chat_template)
    assert tokenizer is not None
    turns = turns[: len(turns) // 2 * 2]
    system = recipe("falcon_vicuna").data.system
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    tally = Tally()
    [row] = encode_rows(
        [CorpusRow(id="x", messages=tuple(messages))],
        tokenizer,
        loss_on="assistant",
        system=system,
        tally=tally,
    )
    first = {"role": "system", "content": system or ""}
    differ = 0
    for i in range(1, len(turns), 2):
        prompt = tokenizer.encode_chat([first, *messages[:i]])
        differ += tuple(row.tokens[: len(prompt)]) != prompt
    assert bool(differ) <= bool(tally.lines())


def test_an_answer_that_is_joined_to_its_prompt_is_counted():
    """The demo's template ends a prompt with a newline, and the answer begins with one."""
    tokenizer = load_tokenizer(shipped("demo/target"))
    assert tokenizer is not None
    pairs = (("user", "hi"), ("assistant", "\n\nthe cat"))
    messages = tuple({"role": role, "content": content} for role, content in pairs)
    tally = Tally()
    [row] = encode_rows(
        [CorpusRow(id="x", messages=messages)], tokenizer, loss_on="assistant", tally=tally
    )
    prompt = tokenizer.encode_chat(messages[:1])
    assert tuple(row.tokens[: len(prompt)]) != prompt
    assert row.tokens[: len(prompt) - 1].tolist() == list(prompt[:-1])
    assert row.weights[len(prompt) - 1] == 0 and row.weights[len(prompt)] == 1
    [line] = tally.lines()
    assert line.startswith("1 answers begin within a token of their prompt")


@pytest.mark.parametrize("name", TRAINED_FOR)
def test_recipes_have_the_words_of_the_configs_that_decode(name):
    data = recipe(name).data
    for other in TRAINED_FOR[name]:
        config = resolve(InferConfig, [(other, read_yaml(find_config(other)))])
        assert (config.system, config.chat_template) == (data.system, data.chat_template)
        if other.endswith("falcon"):
            assert config.drafter_path == f"{recipe(name).out}/model"
            assert config.target == recipe(name).target
            assert config.max_length == data.length
    assert (data.system is None) == (name == "falcon_llama2")
    assert data.overlong == "truncate"


def test_a_conversations_own_system_message_wins(tokenizer):
    own = ({"role": "system", "content": "own"}, {"role": "user", "content": "cat"})
    rows = [
        CorpusRow(id="a", messages=own),
        CorpusRow(id="b", messages=own[1:]),
        CorpusRow(id="c", text="cat"),
    ]
    found = encode_rows(rows, tokenizer, loss_on="all", system="given")
    texts = [tokenizer.decode(row.tokens) for row in found]
    assert ["own" in text for text in texts] == [True, False, False]
    assert ["given" in text for text in texts] == [False, True, False]


def test_texts_that_a_model_continues_have_the_system_message_too(tmp_path):
    message = {"role": "user", "content": "cat"}
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": [message]}))
    data = DataConfig(corpora=[CorpusConfig(file="unused")], held_out=0, system="given")
    [row] = training_rows(tmp_path / "talks.jsonl", data)
    assert row.messages == ({"role": "system", "content": "given"}, message)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_plain_text_begins_as_decoding_begins_it(shared_data, tmp_path, is_legacy):
    shutil.copyfile(shared_data / "tokenizers/llama2/tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": is_legacy}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    for text in ("The sea.", " two", "\nü"):
        [row] = encode_rows([CorpusRow(id="a", text=text)], tokenizer, loss_on="assistant")
        assert tuple(row.tokens) == (*tokenizer.encode(text), tokenizer.eos_id)
