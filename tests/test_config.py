"""Configs: what is read, how layers win, and what every refusal says."""

from __future__ import annotations

import pytest

from jspec.arguments import nearest
from jspec.checkpoints.hub import local_directory
from jspec.config import (
    InferConfig,
    MeshConfig,
    Settings,
    config_names,
    drafters_of,
    find_config,
    parse_sets,
    read_yaml,
    resolve,
)
from jspec.config.folders import recipe_of
from jspec.config.layers import parse_mesh
from jspec.config.yaml_files import parse_yaml
from jspec.errors import UserError
from jspec.train.config import KINDS, NGramConfig

READY = (
    *("llama2_chat_7b", "llama3_70b", "llama3_8b"),
    *("llama3_70b_easyspec", "qwen2_72b_easyspec"),
    *("qwen2_5_32b_dream", "qwen2_5_7b", "vicuna"),
    *("vicuna_7b_falcon", "vicuna_13b_falcon", "llama2_chat_7b_falcon"),
    *(f"qwen2_5_{size}_falcon" for size in ("7b", "14b", "32b", "72b")),
)


@pytest.mark.parametrize("name", READY)
def test_ready_configs_are_found_and_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name in config_names()
    config = resolve(InferConfig, [(name, read_yaml(find_config(name)))])
    assert config.target and config.dtype == "bfloat16"
    assert find_config(f"{name}.yaml") == find_config(name)


def test_every_config_that_comes_with_jspec_is_valid():
    for name in config_names():
        values = read_yaml(find_config(name))
        kind = KINDS[values["kind"]] if "kind" in values else InferConfig
        resolve(kind, [(name, values)])
    listed = (find_config("demo").parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed for name in config_names() if "/" not in name)


@pytest.mark.parametrize("name", [name for name in READY if name.endswith("falcon")])
def test_a_ready_falcon_has_a_head_that_is_published_or_that_a_recipe_makes(name):
    config = resolve(InferConfig, [(name, read_yaml(find_config(name)))])
    assert config.drafter == "falcon" and config.drafter_path and config.target
    if config.drafter_path.startswith("Bestpay-inc/Falcon-"):
        size = name.split("_")[2]
        assert config.drafter_path.lower().endswith(f"qwen2.5-{size}")
        assert config.target.lower().endswith(f"qwen2.5-{size}-instruct")
    else:
        assert recipe_of(config.drafter_path)


def test_a_head_that_is_not_trained_yet_is_one_line_that_says_how(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (
        "runs/falcon_vicuna/model",
        "runs/falcon_vicuna_13b/model",
        "runs/falcon_llama2/model",
        "runs/demo/falcon/model",
    ):
        name = path.split("/")[1] if "demo" not in path else "demo/falcon"
        with pytest.raises(UserError, match=f"not there yet: train it with .* --config {name},"):
            local_directory(path)
    with pytest.raises(UserError, match="no such directory, and not a hub id"):
        local_directory("runs/nobody_makes_this/model")


def test_dreams_config_has_a_proxy_and_its_recipe_writes_what_the_pages_name():
    options = read_yaml(find_config("qwen2_5_32b_dream"))["drafter_options"]
    assert options["static_share"] < 1
    recipe = resolve(NGramConfig, [("ngram_qwen2_5", read_yaml(find_config("ngram_qwen2_5")))])
    assert recipe.tokenizer == read_yaml(find_config("qwen2_5_32b_dream"))["target"]
    text = find_config("ngram_qwen2_5").read_text(encoding="utf-8")
    assert f"drafter_options.ngram={recipe.out}/model" in text


def test_a_file_of_the_same_name_wins_over_a_ready_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vicuna.yaml").write_text("target: here\n")
    assert read_yaml(find_config("vicuna.yaml")) == {"target": "here"}
    assert find_config("vicuna").resolve() != (tmp_path / "vicuna.yaml").resolve()


def test_later_layers_win_and_mappings_merge():
    layers = [
        ("file", {"temperature": 0.5, "drafter_options": {"depth": 2, "width": 3}, "seed": 1}),
        ("--set", {"drafter_options": {"depth": 4}, "mesh": {"tensor": 2}}),
        ("flags", {"temperature": 1, "stop": "end", "mesh": "data=2"}),
    ]
    config = resolve(InferConfig, layers)
    assert (config.temperature, config.seed, config.stop) == (1.0, 1, ["end"])
    assert config.drafter_options == {"depth": 4, "width": 3}
    assert config.mesh == MeshConfig(data=2, tensor=2)


def test_sets_are_read_as_yaml_but_texts_stay_texts():
    given = parse_sets(
        ["target=7", "temperature=1e-1", "drafter_options.depth=4", "stop=[a, b]", "raw=true"]
        + ["system=a=b: c", "drafter_options.name=x"]
    )
    assert given == {
        "target": "7",
        "temperature": 0.1,
        "drafter_options": {"depth": 4, "name": "x"},
        "stop": ["a", "b"],
        "raw": True,
        "system": "a=b: c",
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temprature": 1}, "unknown key 'temprature'; did you mean 'temperature'?"),
        ({"max-new-tokens": 1}, "did you mean 'max_new_tokens'?"),
        ({"qqq": 1}, "unknown key 'qqq'; known: system, "),
        ({"mesh": {"tensr": 2}}, "unknown key 'mesh.tensr'; did you mean 'tensor'?"),
        ({"mesh": "tensor"}, "mesh: expected axes such as"),
        (
            {"mesh": "tensor=two"},
            "mesh.tensor: expected a whole number from 1 to 2147483647, given 'two'",
        ),
        ({"mesh": {"data": 0}}, "mesh.data: expected a whole number from 1 to 2147483647, given 0"),
        ({"temperature": -1}, "temperature: expected 0 (greedy) or a number from 0.01 to 1000000"),
        ({"temperature": 0.001}, "given 0.001"),
        ({"temperature": 1e39}, "given 1e+39"),  # no number of float32
        ({"temperature": float("nan")}, "given nan"),
        ({"temperature": float("inf")}, "given inf"),
        ({"temperature": "warm"}, "given 'warm'"),
        ({"temperature": None}, "given nothing"),
        ({"top_p": 0}, "top_p: expected a number in (0, 1]"),
        ({"top_p": 1.1}, "given 1.1"),
        ({"min_p": 1}, "min_p: expected a number in [0, 1)"),
        ({"top_k": -1}, "top_k: expected a whole number from 0 to 2147483647"),
        ({"top_k": 1.5}, "given 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number from 1 to 2147483647"),
        ({"max_new_tokens": True}, "given true"),
        ({"seed": 2**32}, "seed: expected a whole number from 0 to 4294967295"),
        ({"sample": -1}, "sample: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"max_length": 1}, "max_length: expected a whole number from 2 to 2147483647"),
        ({"dtype": "fp8"}, "dtype: expected auto, float32 or bfloat16, given 'fp8'"),
        ({"rule": "maybe"}, "rule: expected walk or rejection"),
        ({"stop": [""]}, "stop: expected a list of non-empty texts"),
        ({"raw": "yes"}, "raw: expected true or false"),
        ({"target": 7}, "target: expected a directory, a .gguf file or a hub id, given 7"),
        ({"drafter_options": [1]}, "drafter_options: expected a mapping"),
    ],
)
def test_every_refusal_names_origin_key_and_value_in_one_line(values, said):
    with pytest.raises(UserError) as refused:
        resolve(InferConfig, [("run.yaml", values)])
    message = str(refused.value)
    assert message.startswith("run.yaml: ") and "\n" not in message
    assert said in message


def test_several_refusals_are_told_together_and_counted():
    values = {"seed": -1, "top_k": -1, "top_p": 2, "min_p": 2}
    with pytest.raises(UserError, match="seed.*; .*top_p|; and 1 more"):
        resolve(Settings, [("", values)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "expected keys such as"),
        (b"a: [1, 2\nb: 3\n", "broken YAML, line 2"),
        (b"a: 1\na: 2\n", "key 'a' is given twice"),
        (b"a: \xff\n", "not UTF-8 at byte 4"),
        (b"1: 2\n", "expected keys such as"),
        (b"? [a]\n: 1\n", "broken YAML"),
    ],
)
def test_broken_files_are_one_line(text, said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError) as refused:
        read_yaml(path)
    message = str(refused.value)
    assert str(path) in message and said in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vicunna", "did you mean 'vicuna'?"),
        ("nowhere/run.yaml", "neither a file nor a known name"),
        (".", "is a directory"),
    ],
)
def test_unknown_configs_name_the_known_ones(name, said):
    with pytest.raises(UserError) as refused:
        find_config(name)
    assert said in str(refused.value)


def test_nearest_word_ignores_case_and_hyphens():
    assert nearest("Top-K", ["top_k", "top_p"], 1.0) == "top_k"
    assert nearest("answer", ["top_k", "seed"]) is None


def test_numbers_in_yaml_may_have_a_bare_exponent(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("temperature: 7e-1\ntarget: 1e5\n")
    assert read_yaml(path)["temperature"] == 0.7


def test_drafters_of_a_target_are_named_and_refused_by_their_full_key():
    drafters = {"mine": {"drafter": "draft-model", "drafter_path": "here"}}
    config = resolve(InferConfig, [("run.yaml", {"drafter": "none", "drafters": drafters})])
    assert list(drafters_of(config)) == ["mine"]
    chosen = drafters_of(config, ["prompt-lookup", "mine"])
    assert [one.drafter for one in chosen.values()] == ["prompt-lookup", "draft-model"]
    with pytest.raises(UserError, match=r"unknown key 'drafters\.mine\.depth'; did you mean|known"):
        resolve(InferConfig, [("run.yaml", {"drafters": {"mine": {"depth": 4}}})])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("0x10", 16),
        ("1_000", 1000),
        ("-5", -5),
        ("1:30", "1:30"),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.5e3", 1500.0),
        ("-.inf", float("-inf")),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


def test_an_axis_given_twice_is_no_mesh():
    assert parse_mesh("data=1,data=2") == "data=1,data=2"
    assert parse_mesh("data=1, tensor=2") == {"data": 1, "tensor": 2}
