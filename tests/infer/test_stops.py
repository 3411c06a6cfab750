"""Where an answer ends: ids, texts, and texts that are special tokens; numbers of any library."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jspec
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request, cut_short
from jspec.infer.stops import Stops, find_stops

SHORT: dict[str, Any] = {"max_new_tokens": 16, "max_length": 128}
PROMPT = (0, 5, 9)


@pytest.fixture(scope="module")
def tokenizer(checkpoints):
    return load_tokenizer(checkpoints.chat)


@pytest.fixture(scope="module")
def target(checkpoints):
    return jspec.load_target(checkpoints.chat)


@pytest.fixture(scope="module")
def answer(target):
    (found,) = jspec.generate(target, [PROMPT], **SHORT)
    assert found.stop_reason == "max_tokens"
    return found.tokens


def ask(**given: Any) -> Request:
    return Request(**({"tokens": (1,), "max_new_tokens": 4} | given))


def any_number(value: Any) -> Any:
    """A number whose type is not checked before the test runs."""
    return value


def first_new(answer: tuple[int, ...]) -> tuple[int, int]:
    """A token that is not among those before it, and how many tokens there are with it."""
    n = next(n for n in range(3, len(answer)) if answer[n - 1] not in answer[: n - 1])
    return answer[n - 1], n


def test_a_stop_text_that_is_a_special_token_is_its_id(tokenizer):
    """An ordinary token is not: its text may come in other tokens as well."""
    assert tokenizer.id_of("a") is not None
    found = find_stops(["<|user|>", "END", "a", "</s>"], [7, 1, 7], tokenizer, 320)
    assert found == Stops((7, 1, 3), ("END", "a"))
    assert found.all_ids((1, 9)) == (1, 9, 7, 3)


@pytest.mark.parametrize(
    ("texts", "ids", "said"),
    [
        (["</s> USER:"], [], "special token '</s>' has no text"),
        ([], [320], "stop id 320 is not in the vocabulary; ids go from 0 to 319"),
    ],
)
def test_stops_that_never_come_are_refused(tokenizer, texts, ids, said):
    with pytest.raises(UserError, match=said):
        find_stops(texts, ids, tokenizer, 320)
    with pytest.raises(UserError, match="need a tokenizer"):
        find_stops(["x"], [], None, 320)


def test_generate_stops_at_ids_of_any_kind(target, answer):
    stop, n = first_new(answer)
    for given in (stop, [stop], np.asarray([stop]), (np.int32(stop),), jnp.asarray([stop])):
        (found,) = jspec.generate(
            target, [PROMPT], stop_ids=any_number(given), ignore_eos=True, **SHORT
        )
        assert (found.tokens, found.stop_reason) == (answer[:n], "stop_token")
    many = [i for i in range(320) if i not in answer][:20]
    (found,) = jspec.generate(target, [PROMPT], stop_ids=[*many, stop], **SHORT)
    assert found.tokens == answer[:n]


@pytest.fixture
def special_folder(checkpoints, tmp_path, tokenizer, answer):
    """The checkpoint, in whose tokenizer a token of the answer is special."""
    folder = checkpoints.copy("chat", tmp_path)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["additional_special_tokens"] = [tokenizer.token(first_new(answer)[0])]
    path.write_text(json.dumps(said), encoding="utf-8")
    return folder


def test_generate_stops_at_a_special_token_by_its_name(target, answer, special_folder, tokenizer):
    stop, n = first_new(answer)
    target = dataclasses.replace(target, checkpoint=find_checkpoint(special_folder))
    (found,) = jspec.generate(target, [PROMPT], stop=tokenizer.token(stop), **SHORT)
    assert (found.tokens, found.stop_reason) == (answer[:n], "stop_token")
    assert found.text == tokenizer.decode(answer[: n - 1])


def test_flags_and_lines_stop_and_a_line_wins(
    checkpoints, infer, answer, special_folder, tokenizer, tmp_path
):
    stop, n = first_new(answer)
    name, other = tokenizer.token(stop), next(i for i in range(9, 99) if i not in answer)
    lines = [{}, {"stop_ids": [stop]}, {"stop_ids": []}, {"stop": [name]}, {"stop": ["@never"]}]
    lines = [{"prompt_tokens": PROMPT} | line for line in lines]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run = infer(
        *("--target", special_folder, "--prompts", tmp_path / "p.jsonl", "--json"),
        *("--max-new-tokens", 16, "--stop-id", other, "--stop-id", answer[1], "--stop", name),
    )
    assert run.code == 0, run.err
    whole = answer[: n if answer[1] != stop else 2]
    first = min(whole.index(answer[1]) + 1, n)
    ends = [len(record["tokens"]) for record in run.records[:-1]]
    assert ends == [first, n, n, first, first]
    assert {record["stop_reason"] for record in run.records[:-1]} == {"stop_token"}


# --- numbers -------------------------------------------------------------------------------------


def test_numbers_of_any_library_are_numbers(target, answer):
    given: dict[str, Any] = {
        "max_new_tokens": np.int64(16),
        "max_length": np.int32(128),
        "batch_size": np.uint8(1),
        "temperature": np.float32(0),
        "top_p": np.float64(1),
        "top_k": jnp.int32(0),
        "min_p": np.float16(0),
        "seed": np.uint32(7),
        "sample": np.int8(0),
    }
    for prompt in (np.asarray(PROMPT), list(np.asarray(PROMPT)), jnp.asarray(PROMPT)):
        assert jspec.generate(target, [any_number(prompt)], **given)[0].tokens == answer
    assert jspec.generate(target, any_number(np.asarray([PROMPT])), **given)[0].tokens == answer
    asked = {key: given[key] for key in given if key not in ("max_length", "batch_size")}
    request = ask(tokens=np.asarray(PROMPT), **asked)
    assert request == Request(tokens=PROMPT, max_new_tokens=16, seed=7)
    assert all(type(token) is int for token in request.tokens) and type(request.top_k) is int
    engine = Engine(target, batch_size=any_number(np.int64(1)), max_length=any_number(np.int64(64)))
    assert type(engine.max_length) is int
    assert jspec.make_mesh(data=any_number(np.int64(1))).size == 1
    drafter = jspec.load_drafter("prompt-lookup", target=target, depth=np.int64(3))
    assert drafter == jspec.load_drafter("prompt-lookup", target=target, depth=3)


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": True},
        {"temperature": np.bool_(True)},
        {"seed": False},
        {"top_k": 1.5},
        {"stop_ids": [True]},
        {"tokens": (True,)},
        {"tokens": "12"},
        {"tokens": 5},
        {"max_new_tokens": "4"},
    ],
    ids=str,
)
def test_truth_values_and_texts_are_no_numbers(given):
    with pytest.raises(UserError, match="expected"):
        ask(**given)


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "sample"])
def test_both_bounds_are_told(name):
    low = 1 if name == "max_new_tokens" else 0
    high = 2**32 - 1 if name in ("seed", "sample") else 2**31 - 1
    for value in (low - 1, high + 1, 10**20):
        with pytest.raises(UserError, match=rf"{name}: .*from {low} to {high}, given {value}"):
            ask(**{name: value})


def test_python_refuses_what_it_would_misread_and_tells_what_it_leaves_out(target, caplog):
    with pytest.raises(UserError, match="expected a text, token ids"):
        jspec.generate(target, [any_number(b"hi")], **SHORT)
    for name in ("ignore_eos", "trace"):
        with pytest.raises(UserError, match=f"{name}: expected True or False, given 'no'"):
            jspec.generate(target, [PROMPT], **SHORT, **{name: any_number("no")})
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    with pytest.raises(UserError, match="some message of the user"):
        jspec.generate(target, [[answer]], **SHORT)
    both = jspec.generate(target, [[user], [user, answer]], **SHORT)
    assert both[0].tokens == both[1].tokens
    assert caplog.text.count("prompts[1]: the assistant's last message is left out") == 1


# --- room ----------------------------------------------------------------------------------------


def test_a_text_that_cannot_have_all_its_new_tokens_is_told_once(
    target, checkpoints, infer, caplog
):
    def request(n: int) -> Request:
        return Request(tokens=(1,) * n, max_new_tokens=10)

    assert cut_short([request(5), request(6)], 16) is None
    assert (
        cut_short([request(7)], 16)
        == "the text ends at 16 tokens, prompt included, after 9 new ones"
    )
    several = cut_short([request(5), request(7), request(8)], 16)
    assert several is not None and several.startswith("2 of 3 texts end at 16 tokens")
    assert several.endswith("at least 8 new ones")
    (found,) = jspec.generate(
        target, [PROMPT], max_new_tokens=10**6, max_length=16, ignore_eos=True
    )
    assert len(found.tokens) == 13 and found.stop_reason == "length"
    assert caplog.text.count("more than there is room for") == 1
    run = infer("--target", checkpoints.chat, "--prompt", "a", "b", *_ROOM)
    assert run.code == 0 and run.err.count("more than there is room for") == 1


_ROOM = ("--max-new-tokens", 1000, "--max-length", 48, "--ignore-eos", "--raw")
