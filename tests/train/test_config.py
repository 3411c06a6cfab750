"""A refused field of a recipe says what was expected, which follows from its type and limits."""

from __future__ import annotations

import pytest

from jspec.config import find_config, parse_sets, read_yaml, resolve, runnable_names
from jspec.errors import UserError
from jspec.train.config import KINDS, CorpusConfig, as_yaml

EXPECTED = {
    "compute_dtype=float16": "compute_dtype: expected float32 or bfloat16, given 'float16'",
    "remat=maybe": "remat: expected true or false, given 'maybe'",
    "optimizer.learning_rate=0": "optimizer.learning_rate: expected a number above 0, given 0",
    "optimizer.weight_decay=-1": "optimizer.weight_decay: expected a number of at least 0",
    "optimizer.b1=1": "optimizer.b1: expected a number in [0, 1), given 1",
    "optimizer.final_share=2": "optimizer.final_share: expected a number in [0, 1], given 2",
    "teacher_share=0": "teacher_share: expected a number in (0, 1], given 0",
    "epochs=0": "epochs: expected a number above 0, given 0",
    "data.held_out=0.6": "data.held_out: expected a number in [0, 0.5], given 0.6",
    "data.loss_on=user": "data.loss_on: expected all or assistant, given 'user'",
    "optimizer=7": "optimizer: expected a mapping, given 7",
    "data.system=[1]": "data.system: expected a text, given [1]",
    "out=": "out: expected a path (it must be given), given nothing",
}


@pytest.mark.parametrize("setting", EXPECTED)
def test_a_refused_field_says_what_was_expected(setting):
    kind = KINDS["model"]
    values = read_yaml(find_config("demo/target"))
    with pytest.raises(UserError) as caught:
        resolve(kind, [("file", values), ("--set", parse_sets([setting], kind))])
    assert EXPECTED[setting] in str(caught.value)


def test_words_that_look_like_numbers_are_texts_where_a_text_is_expected():
    kind = KINDS["tokenizer"]
    values = read_yaml(find_config("demo/tokenizer"))
    config = resolve(kind, [("file", values), ("--set", parse_sets(["bos=7", "eos=no"], kind))])
    assert (getattr(config, "bos", None), getattr(config, "eos", None)) == ("7", "no")


@pytest.mark.parametrize("name", runnable_names(is_training=True))
def test_a_resolved_recipe_is_read_as_itself(name, tmp_path):
    values = read_yaml(find_config(name))
    config = resolve(KINDS[values["kind"]], [(name, values)])
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    again = resolve(KINDS[values["kind"]], [("again", read_yaml(tmp_path / "again.yaml"))])
    assert again == config


def test_a_file_is_in_the_folder_unless_it_stands_for_itself():
    places = {"a.jsonl": "data/a.jsonl", "./a.jsonl": "./a.jsonl", "/x/a.txt": "/x/a.txt"}
    for file, place in places.items():
        assert CorpusConfig(file=file).path_in("data") == place
    assert CorpusConfig(dataset="org/name").path_in("data") is None
