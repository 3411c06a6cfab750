"""Which command makes a file that is missing, and which one comes after a training."""

from __future__ import annotations

import pytest
import yaml

from jspec.train.command.cli import main
from jspec.train.command.recipes import after_falcon, after_model
from jspec.train.config import FalconConfig, ModelConfig

TRAIN = "python -m jspec.train --config"
MORE = "out=runs/demo/texts_more.jsonl n_texts=8000 batch_size=32"

READY = {
    "demo/draft": f"data.corpora: ./runs/demo/texts.jsonl is not there; make it with {TRAIN} "
    "demo/texts --set data.folder=DIR",
    "demo/ngram": f"data.corpora: ./runs/demo/texts.jsonl is not there; make it with {TRAIN} "
    "demo/texts --set data.folder=DIR",
    "demo/falcon": f"init_from: runs/demo/falcon_short/model is not there; make it with {TRAIN} "
    "demo/falcon_short --set data.folder=DIR",
    "demo/falcon_short": f"data.corpora: ./runs/demo/texts_more.jsonl is not there; make it with "
    f"{TRAIN} demo/texts --set data.folder=DIR {MORE}",
}


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_is_called_by_its_name(name, capsys):
    assert main(["--config", name]) == 2
    assert capsys.readouterr().err == f"error: {READY[name]}\n"


def test_the_folder_that_is_given_is_in_the_command(capsys):
    assert main(["--config", "demo/draft", "--set", "data.folder=my corpora"]) == 2
    assert capsys.readouterr().err.endswith("demo/texts --set data.folder='my corpora'\n")


def test_recipes_beside_the_one_that_is_given_are_known(tmp_path, capsys):
    """By their paths; one with a folder of its own needs none."""
    data = {"corpora": ["a.jsonl"], "folder": "."}
    first = {"kind": "falcon", "out": "runs/mine", "data": data}
    second = {"kind": "falcon", "out": "x", "target": "demo/target", "steps": 1, "data": data}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    (tmp_path / "a.jsonl").touch()
    path = tmp_path / "second.yaml"
    for init_from in ("runs/mine/model", f"{tmp_path}/runs/mine/model"):
        path.write_text(yaml.safe_dump(second | {"init_from": init_from}))
        assert main(["--config", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.endswith(f"make it with {TRAIN} {tmp_path / 'first.yaml'}\n")


def test_what_no_recipe_makes_is_left_to_those_who_read_it(tmp_path, capsys):
    assert main(["--config", "demo/target", "--set", "tokenizer=runs/else"]) == 2
    assert "make it with" not in capsys.readouterr().err


VICUNA = "lmsys/vicuna-7b-v1.5"


def test_a_trained_head_is_fitted_and_used_with_the_ready_config_of_its_target():
    """Which has the target's template and type; `--target` alone has neither."""
    values = {"out": "runs/mine", "target": VICUNA, "steps": 1, "data": {"corpora": ["a.jsonl"]}}
    told = after_falcon(FalconConfig.model_validate(values))
    drafter = "--config vicuna --drafter falcon --drafter-path runs/mine/model"
    assert f"  python -m jspec.plan {drafter} --out runs/mine/model/tree.yaml" in told
    assert f"  python -m jspec.infer {drafter} --compare --prompt TEXT" in told
    (*_, demo) = after_falcon(FalconConfig.model_validate(values | {"target": "demo/target"}))
    assert demo.endswith("--compare"), "its config has a prompt"


@pytest.mark.parametrize(
    ("teacher", "drafter", "said"),
    [
        (None, "draft-model", "--target runs/mine/model --raw --prompt TEXT"),
        (None, "diffuspec", "--target TARGET --drafter diffuspec"),
        ("runs/big", "draft-model", "--target runs/big --drafter draft-model"),
        (VICUNA, "draft-model", "--config vicuna --drafter draft-model"),
    ],
)
def test_a_trained_model_is_used_with_its_teacher(teacher, drafter, said):
    values = {"out": "runs/mine", "tokenizer": "t", "steps": 1, "data": {"corpora": ["a.jsonl"]}}
    config = ModelConfig.model_validate(values | {"model": {"width": 8}, "teacher": teacher})
    (told,) = after_model(config, drafter)
    rest = "" if "--raw" in said else " --drafter-path runs/mine/model --compare --prompt TEXT"
    assert told == f"next: python -m jspec.infer {said}{rest}"
