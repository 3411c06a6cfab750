"""What becomes of the keys of a prompts line: obeyed, refused or told of, never dropped."""

from __future__ import annotations

import json

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.config import InferConfig
from jspec.console.line_keys import KINDS, OBEYED
from jspec.console.prompts import from_lines, told_passed_over
from jspec.console.reader import Reader
from jspec.errors import UserError

CONFIG = InferConfig(system="be kind", stop=["X"], stop_ids=[5])


def read(*records, config=CONFIG):
    data = "\n".join(json.dumps(record) for record in records).encode()
    return from_lines(data, "f", config)


def one(**record):
    return read({"prompt": "x"} | record)[0]


OTHER = {"batch_size": 7, "chat_template": "{{ x }}", "dtype": "bfloat16", "drafter": "falcon"}


@pytest.mark.parametrize("key", sorted({*InferConfig.model_fields} - {*OBEYED, *KINDS, "target"}))
def test_a_setting_of_the_run_is_refused_where_it_differs(key):
    own = CONFIG.model_dump(mode="json")[key]
    assert one(**{key: own}).passed_over == ()
    with pytest.raises(UserError, match=f"f, line 1: '{key}' is a setting of the whole run"):
        one(**{key: OTHER.get(key, "other")})


def test_a_lines_own_settings_win():
    found = one(stop="Y", stop_ids=[7, 8], system="be brief", raw=False, ignore_eos=True, seed=3)
    settings = found.settings
    assert (settings.stop, settings.stop_ids, settings.system) == (["Y"], [7, 8], "be brief")
    assert (settings.ignore_eos, settings.seed) == (True, 3)
    assert (one().settings.stop, one().settings.stop_ids) == (["X"], [5])
    assert one(system=None).settings.system is None


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"stop": [""]}, "stop: expected a list of non-empty texts"),
        ({"stop": 5}, "stop: expected a list of non-empty texts, given 5"),
        ({"stop_ids": [-1]}, "stop_ids.*: expected a list of token ids, each from 0 to"),
        ({"stop_ids": [True]}, "stop_ids.*: expected a list of token ids"),
        ({"ignore_eos": 1}, "ignore_eos: expected true or false, given 1"),
        ({"system": ["be"]}, "system: expected a text"),
        ({"system": "s", "raw": True}, "system is part of the chat template, which raw leaves"),
        ({"max_new_tokens": 10**12}, "expected a whole number from 1 to 2147483647, given 1000"),
        ({"stop_token_ids": [1]}, "'stop_token_ids' is called 'stop_ids' here"),
        ({"max_completion_tokens": 1}, "'max_completion_tokens' is called 'max_new_tokens'"),
        ({"ignore_eso": True}, "did you mean 'ignore_eos'"),
        ({"maxTokens": 1}, "'maxTokens' is called 'max_new_tokens' here"),
        ({"stopSequences": ["x"]}, "'stopSequences' is called 'stop' here"),
        ({"prompt": ["x", "y"]}, "prompt: expected a text, .* give each text its own line"),
        ({"prompt": [1, 2]}, "prompt: expected a text, .* token ids are called prompt_tokens"),
    ],
    ids=str,
)
def test_bad_values_and_other_names_are_one_line(record, said):
    with pytest.raises(UserError, match=f"f, line 1: .*{said}") as refused:
        one(**record)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "asks", "idle"),
    [
        ("n", 2, 1),
        ("best_of", True, 1),
        ("repetition_penalty", 1.1, 1.0),
        ("presence_penalty", 0.5, 0),
        ("frequency_penalty", -1, 0.0),
        ("logprobs", True, False),
        ("top_logprobs", 5, None),
        ("logit_bias", {"5": 1}, {}),
        ("stream", True, False),
        ("model", "gpt-4", None),
        ("num_beams", 4, 1),
        ("min_tokens", 5, 0),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("target", "a reference", None),
    ],
)
def test_what_other_formats_ask_is_told_once_a_key(key, asks, idle):
    asking = {"prompt": "x", key: asks}
    assert told_passed_over(read(asking)) == [f"f, line 1: {key!r} is not obeyed"]
    told = told_passed_over(read({"prompt": "x"}, asking, asking, asking))
    assert told == [f"f, line 2: {key!r} is not obeyed, nor in 2 more lines"]
    assert told_passed_over(read({"prompt": "x", key: idle})) == []


def test_null_asks_for_nothing():
    nulls = ("temperature", "stop", "stop_ids", "max_new_tokens", "seed", "max_tokens", "n", "raw")
    found = one(**dict.fromkeys((*nulls, "stop_token_ids", "messages", "turns")))
    assert found.settings == one().settings and found.passed_over == ()


def test_do_sample_asks_for_what_the_temperature_does():
    sampled = InferConfig(temperature=0.5)
    for config, asked in ((CONFIG, False), (sampled, True)):
        line = {"prompt": "x", "do_sample": asked}
        assert told_passed_over(read(line, config=config)) == []
        line["do_sample"] = not asked
        assert told_passed_over(read(line, config=config)) == [
            "f, line 1: 'do_sample' is not obeyed"
        ]
        line["temperature"] = 0 if asked else 1
        assert told_passed_over(read(line, config=config)) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"custom_id": "a", "body": {"messages": []}}, "a request inside 'body' is not looked for"),
        ({"params": {"prompt": "x"}}, "a request inside 'params' is not looked for"),
        ({"conversations": [{"from": "human"}]}, "conversations as messages of role and content"),
        ({"question": "x", "answer": "y"}, "rename 'question' to 'prompt'"),
        ({"Prompt": "x"}, "rename 'Prompt' to 'prompt'"),
        ({"instruction": "x", "input": "", "output": "y"}, "rename 'instruction' to 'prompt'"),
        ({"instruction": "x", "input": "y"}, "join instruction and input into one text"),
        ({"prompt": None}, "given prompt: null"),
    ],
    ids=str,
)
def test_lines_of_other_formats_are_named_for_what_they_are(record, said):
    with pytest.raises(UserError, match=f"f, line 1: expected one of turns, .*{said}") as refused:
        read(record)
    assert "\n" not in str(refused.value)


def test_keys_of_the_data_set_are_left_alone():
    assert one(category="x", reference=["y"], answer="z", task="t").passed_over == ()


def test_the_command_tells_of_them(checkpoints, infer, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "the cat", "n": 3}\n{"prompt": "a", "n": 2, "stream": true}')
    run = infer("--target", checkpoints.chat, "--prompts", path, "--max-new-tokens", 2)
    assert run.code == 0
    assert f"{path}, line 1: 'n' is not obeyed, nor in 1 more lines" in run.err
    assert f"{path}, line 2: 'stream' is not obeyed" in run.err


# --- messages ------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
TALK = [
    {"role": "system", "content": "rules"},
    USER,
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "?"}]},
]


@pytest.fixture(scope="module")
def reader(checkpoints):
    return Reader(tokenizer=load_tokenizer(checkpoints.chat), max_length=150, vocab_size=320)


def test_messages_are_a_conversation_whose_next_turn_is_the_answer(reader):
    expected = [*TALK[:3], {"role": "user", "content": "and ?"}]
    for messages in (TALK, [*TALK, {"role": "assistant", "content": "the reference"}]):
        (found,) = read({"messages": messages})
        assert reader.tokens(found) == reader.tokenizer.encode_chat(expected)
        assert found.turns == ("and ?",) and found.n_turns == 1
    (found,) = read({"messages": [USER]})
    assert reader.tokens(found) == reader.tokens(one(prompt="hi"))  # with the run's system message
    (found,) = read({"messages": [USER], "system": "be brief"})
    expected = [{"role": "system", "content": "be brief"}, USER]
    assert reader.tokens(found) == reader.tokenizer.encode_chat(expected)


def test_an_answer_that_is_there_already_is_told_to_be_left_out():
    line = {"messages": [USER, {"role": "assistant", "content": "the reference"}]}
    said = "f, line 2: the assistant's last message is left out"
    assert told_passed_over(read({"messages": TALK}, line)) == [
        f"{said}, as it is what is to be answered"
    ]
    (told,) = told_passed_over(read({"messages": TALK}, line, line))
    assert told == f"{said}, and of 1 more lines, as it is what is to be answered"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages must be a list of role and content"),
        ("hi", "messages must be a list of role and content"),
        ([{"role": "user"}], "message 1 needs a role and content"),
        ([USER, {"role": "tool", "content": "x"}], "message 2: role: expected one of system, user"),
        ([{"role": ["user"], "content": "x"}], "message 1: role: expected one of"),
        ([{"role": "user", "content": None}], "message 1: content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1: content must be"),
        ([{"role": "user", "content": "\ud800"}], "message 1: half of a surrogate pair"),
        ([{"role": "system", "content": "x"}], "messages: expected some text of the user"),
        ([{"role": "user", "content": ""}], "messages: expected some text of the user"),
    ],
    ids=str,
)
def test_bad_messages_are_one_line(messages, said):
    with pytest.raises(UserError, match=f"f, line 1: {said}") as refused:
        read({"messages": messages})
    assert "\n" not in str(refused.value)


def test_a_system_message_is_said_once():
    with pytest.raises(UserError, match="system is given twice"):
        read({"messages": TALK, "system": "more"})
    with pytest.raises(UserError, match="prompt_tokens leaves out"):
        read({"prompt_tokens": [1], "system": "more"})


def test_a_conversation_needs_a_chat_template(checkpoints):
    plain = load_tokenizer(checkpoints.plain)
    reader = Reader(tokenizer=plain, max_length=150, vocab_size=320)
    config = InferConfig()
    (found,) = read({"messages": [USER]}, config=config)
    assert plain is not None and reader.tokens(found) == plain.encode("hi")
    for record in ({"messages": TALK}, {"prompt": "x", "system": "rules"}):
        (found,) = read(record, config=config)
        with pytest.raises(UserError, match="f, line 1: .*chat template"):
            reader.tokens(found)
