"""The recipes of Falcon have the paper's values, as they are read and as they are applied.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), section 3.4, and the released trainer. A step of
a recipe has 16 dialogues where the paper's has one, so its counts of steps are divided by 16.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jspec.config import find_config
from jspec.models.model import build
from jspec.testing.models import tiny_config
from jspec.train.command.cli import make_config, make_parser
from jspec.train.config import FalconConfig
from jspec.train.csgd import Glance
from jspec.train.falcon import head_of, initial_params, objective_of
from jspec.train.optimizer import make_optimizer, make_schedule

RECIPES = ("falcon_vicuna", "falcon_vicuna_13b", "falcon_llama2")
DIALOGUES = 16


@functools.cache
def recipe(name: str) -> FalconConfig:
    config = make_config(make_parser().parse_args(["--config", name]))
    assert isinstance(config, FalconConfig)
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_minimises_what_the_paper_does(name):
    config = recipe(name)
    target = build(tiny_config(max_positions=2048))
    head = head_of(config, target)
    objective = objective_of(config, head, target, 777)
    assert (head.config.block_size, head.config.decoder.n_layers) == (2, 1)
    assert head.config.lstm_mode.value == "pointwise" and head.config.has_lstm_bias
    assert head.config.decoder.mlp_width == target.config.mlp_width
    found = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    assert objective.glance is not None
    glance = {"schedule": "code", "epochs": 20, "align": "block"}
    assert objective.glance.model_dump() == glance
    for part in ("head", "target", "glance"):
        del found[part]
    assert found == {
        "steps": 777,
        "noise": 0.2,
        "dropout": 0.1,
        "temperature": 0.95,
        "soft_share": 0.9,
        "token_weight": 0.1,
        "has_loss_on_shown": True,
        "remat": True,
        "judges_all": False,
    }
    assert (config.data.length, config.data.loss_on) == (2048, "assistant")
    assert (config.steps, config.batch_size) == (800_000 // DIALOGUES, DIALOGUES)
    assert config.micro_batch_size is None and config.compute_dtype == "bfloat16"


@pytest.mark.parametrize("field", ["noise", "dropout", "token_weight", "soft_share", "remat"])
@pytest.mark.parametrize("value", [0.5, 0.25])
def test_every_field_of_the_objective_is_the_configs(field, value):
    changed = recipe("falcon_vicuna").model_copy(update={field: value})
    target = build(tiny_config(max_positions=2048))
    assert getattr(objective_of(changed, head_of(changed, target), target, 5), field) == value


def test_glances_are_the_configs():
    given = {"schedule": "paper", "epochs": 7, "align": "masked_stride"}
    target = build(tiny_config(max_positions=2048))
    values = recipe("falcon_vicuna").model_dump() | {"glance": given}
    found = []
    for has_any in (True, False):
        changed = FalconConfig.model_validate(values | {"glancing": has_any})
        found.append(objective_of(changed, head_of(changed, target), target, 5).glance)
    assert found == [Glance(**given), None]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_rate_is_the_papers(name):
    """lr(0) = 0, up to 3e-5 at step 2000, down to 0 at step 800,000, in steps of one dialogue."""
    config = recipe(name)
    assert config.steps is not None
    schedule = make_schedule(config.optimizer, config.steps)
    for step in (0, 1, 50, 125, 25_000, 49_999, 50_000, 60_000):
        seen = DIALOGUES * step
        wanted = 3e-5 * min(seen / 2000, max(0, 800_000 - seen) / 798_000)
        assert float(np.asarray(schedule(step))) == pytest.approx(wanted, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_update_is_adamws_on_gradients_clipped_entry_by_entry(name):
    """Two steps at the highest rate, beside Adam as its paper writes it; vectors do not decay."""
    config = recipe(name)
    assert config.steps is not None
    optimizer = make_optimizer(config.optimizer, config.steps)
    params = {"matrix": jnp.full((1, 4), 2.0), "vector": jnp.full((4,), 2.0)}
    gradients = np.asarray([[0.3, -7.0, 1e-3, 0.0], [-0.2, -0.4, 9.0, 0.1]], np.float32)
    state = optimizer.init(params)
    first, second = np.zeros(4), np.zeros(4)
    for t, gradient in enumerate(gradients, 1):
        tree = {"matrix": jnp.asarray(gradient)[None], "vector": jnp.asarray(gradient)}
        found, state = optimizer.update(tree, state, params)
        update = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(4), found)
        first = 0.9 * first + 0.1 * np.clip(gradient, -0.5, 0.5)
        second = 0.95 * second + 0.05 * np.clip(gradient, -0.5, 0.5) ** 2
        rate = 3e-5 * (t - 1) / 125
        adam = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.95**t)) + 1e-8)
        assert isinstance(update, dict)
        np.testing.assert_allclose(update["vector"], -rate * adam, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(update["matrix"], -rate * (adam + 0.01 * 2), rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_writes_every_value_of_the_paper_itself(name):
    """So that a default that changes later does not change a published recipe."""
    path = find_config(name)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert written["optimizer"] == recipe(name).optimizer.model_dump()
    for field in ("block_size", "n_layers", "noise", "dropout", "token_weight", "soft_share"):
        assert written[field] == getattr(recipe(name), field)
    assert written["glance"] == recipe(name).glance.model_dump()


def test_a_head_has_the_width_and_the_first_weights_that_it_is_told():
    """Within 1 / sqrt(inputs) for projections, within 1 / sqrt(width) for the LSTM."""
    changed = recipe("falcon_vicuna").model_copy(update={"mlp_width": 100})
    head = head_of(changed, build(tiny_config(max_positions=2048)))
    width = head.config.decoder.width
    assert head.config.decoder.mlp_width == 100
    params = initial_params(head, jax.random.key(0))
    [layer] = params["layers"]
    bounds = [(one["input"], width) for one in params["lstm"]]
    bounds += [(layer["mlp"]["down"], 100), (layer["mlp"]["up"], width)]
    for weights, n in bounds:
        assert 0.95 < float(jnp.abs(weights).max()) * n**0.5 <= 1
