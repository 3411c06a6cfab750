"""`jspec.generate` and `jspec.stream`: prompts of three kinds, pieces that add up, refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jspec
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from jspec.infer import generate as generate_module
from jspec.infer.engine import check_models
from jspec.law import Rule
from jspec.models.model import build

SHORT: dict[str, Any] = {"max_new_tokens": 16, "max_length": 128}


@pytest.fixture(scope="module")
def target(checkpoints):
    return jspec.load_target(checkpoints.chat)


def test_texts_tokens_and_conversations_are_prompts(target, checkpoints):
    tokenizer = load_tokenizer(checkpoints.chat)
    assert tokenizer is not None
    messages = [{"role": "user", "content": "the cat"}]
    prompts = ["the cat", tokenizer.encode("the cat"), messages, tokenizer.encode_chat(messages)]
    found = jspec.generate(target, prompts, **SHORT)
    assert found[0].tokens == found[1].tokens and found[2].tokens == found[3].tokens
    for each in found:
        assert each.text == tokenizer.decode(each.tokens)
        assert each.stop_reason == "max_tokens"
        assert each.stats.new_tokens == 16 and each.stats.drafter == "none"


def test_a_drafter_and_a_batch_change_no_token(target):
    drafter = jspec.load_drafter("prompt-lookup", target=target)
    prompts = ["the cat the cat", [0, 5, 9, 5, 9], "on the log"]
    options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "seed": 4} | SHORT
    plain = jspec.generate(target, prompts, **options)
    drafted = jspec.generate(target, prompts, drafter=drafter, batch_size=2, **options)
    assert [each.tokens for each in plain] == [each.tokens for each in drafted]
    assert [each.text for each in plain] == [each.text for each in drafted]
    assert drafted[0].stats.draft_tokens_proposed > 0


def test_pieces_add_up_to_the_answers(target):
    prompts = ["the cat", "on the log"]
    whole = jspec.generate(target, prompts, **SHORT)
    texts, ends = ["", ""], {}
    tokens: list[tuple[int, ...]] = [(), ()]
    for piece in jspec.stream(target, prompts, **SHORT):
        texts[piece.index] += piece.text
        tokens[piece.index] += piece.tokens
        if piece.generation is not None:
            ends[piece.index] = piece.generation
    assert texts == [each.text for each in whole]
    assert tokens == [each.tokens for each in whole]
    assert [ends[i].tokens for i in (0, 1)] == [each.tokens for each in whole]


def test_the_same_call_compiles_once(target):
    jspec.generate(target, ["the cat"], **SHORT)
    (again,) = jspec.generate(target, ["a dog"], **SHORT)
    assert again.stats.compilations == 0


def test_the_cache_has_room_for_these_texts_and_not_for_every_text(target, monkeypatch):
    made = []
    engine = generate_module.Engine
    monkeypatch.setattr(
        generate_module, "Engine", lambda *a, **k: made.append(engine(*a, **k)) or made[-1]
    )
    jspec.stream(target, [[0, 5]], max_new_tokens=8)
    jspec.stream(target, [[0, 5]], max_new_tokens=150)
    jspec.stream(target, [[0, 5]], max_new_tokens=8, max_length=50)
    assert target.max_length == 192
    assert [each.max_length for each in made] == [128, 192, 50]


def test_no_prompts_are_no_answers(target):
    assert jspec.generate(target, [], max_new_tokens=4) == []


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("the cat", {}, "wrap it"),
        ([""], {}, r"prompts\[0\]: the text is empty"),
        ([[]], {}, "prompt is empty"),
        (["a", [1, "b"]], {}, r"prompts\[1\]: expected a text, token ids"),
        ([[{"role": "user"}]], {}, "role.*content"),
        ([[400]], {}, "not in the vocabulary"),
        ([[1] * 192], {}, "shorten"),
        (["a"], {"temperature": -1.0}, "temperature: expected"),
        (["a"], {"temperature": float("nan")}, "temperature"),
        (["a"], {"seed": 2**32}, "seed"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["a"], {"stop": [""]}, "stop"),
        (["a"], {"drafter": "prompt-lookup"}, "jspec.load_drafter"),
        (["a"], {"batch_size": 0}, "batch_size"),
        (["a"], {"max_length": 1000}, "max_length"),
        (["a"], {"max_length": 0}, "max_length"),
        (["a"], {"rule": "never"}, "rule: expected walk or rejection"),
        (["a"], {"rule": ["walk"]}, "rule: expected walk or rejection"),
        (["a"], {"ignore_eos": "no"}, "ignore_eos: expected True or False, given 'no'"),
        (["a"], {"trace": 1}, "trace: expected True or False, given 1"),
        (["a"], {"chat_template": 3}, "chat_template: expected Jinja or a file of it, given 3"),
        (["a"], {"chat_template": Path("no.jinja")}, "chat_template .no.jinja.: expected Jinja"),
        ((x for x in "ab"), {}, r"make it one: list\(x\)"),
        ([b"a"], {}, r"prompts\[0\]: expected a text.*decode it"),
        ([{"role": "user", "content": "a"}], {}, r"a single conversation is \[messages\]"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(target, prompts, options, said):
    with pytest.raises(jspec.UserError, match=said):
        jspec.generate(target, prompts, **({"max_new_tokens": 4} | options))
    with pytest.raises(jspec.UserError, match=said):
        jspec.stream(target, prompts, **({"max_new_tokens": 4} | options))


def test_a_rule_may_be_given_as_the_law_names_it(target):
    given = [jspec.generate(target, [[0]], rule=r, **SHORT)[0].tokens for r in ("walk", Rule.WALK)]
    assert given[0] == given[1]


def test_a_drafter_of_a_target_of_other_sizes_is_refused(target):
    drafter = jspec.load_drafter("prompt-lookup", target=target)
    config = target.model.config

    def refused(captures, **changes):
        model = build(dataclasses.replace(config, **changes))
        reader = SimpleNamespace(captures=captures)
        other = dataclasses.replace(drafter, loaded_for=model, drafter=reader)
        with contextlib.suppress(jspec.UserError):
            check_models(target, other)
            return False
        return True

    assert refused((), vocab_size=config.vocab_size + 1)
    assert refused(("final",), width=2 * config.width)
    assert refused(
        ("final",), n_layers=config.n_layers + 1, windows=(None,) * (config.n_layers + 1)
    )
    assert refused(("final",), n_layers=config.n_layers - 1, windows=config.windows[1:])
    assert not refused((), width=2 * config.width)
    assert not refused(("final",))
    assert drafter.loaded_for == target.model


def test_text_is_streamed_once_a_chunk(target):
    for rounds in (1, 5):
        pieces = [*jspec.stream(target, ["the cat"], rounds_per_chunk=rounds, **SHORT)]
        assert [len(each.tokens) for each in pieces][:3] == [1, rounds, rounds]
    with pytest.raises(UserError, match="rounds_per_chunk must be at least 1"):
        jspec.generate(target, ["the cat"], rounds_per_chunk=0, **SHORT)


def test_stream_takes_what_generate_takes():
    asked, streamed = inspect.signature(jspec.generate), inspect.signature(jspec.stream)
    assert streamed.parameters == asked.parameters


def test_texts_need_a_tokenizer(checkpoints):
    bare = jspec.load_target(checkpoints.bare)
    (answer,) = jspec.generate(bare, [[0, 5]], **SHORT)
    assert answer.text is None and len(answer.tokens) == 16
    for prompt in ("a", [{"role": "user", "content": "a"}]):
        with pytest.raises(jspec.UserError, match="no tokenizer"):
            jspec.generate(bare, [prompt], max_new_tokens=4)
    with pytest.raises(jspec.UserError, match="stop strings need a tokenizer"):
        jspec.generate(bare, [[0]], max_new_tokens=4, stop="x")


def test_every_public_name_exists():
    for name in jspec.__all__:
        assert getattr(jspec, name) is not None
    assert set(jspec.__all__) <= set(dir(jspec))
    with pytest.raises(AttributeError):
        getattr(jspec, "nothing_of_that_name")  # noqa: B009  # a checker would refuse jspec.X
