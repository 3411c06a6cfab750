"""The whole objective of Falcon's training beside an independent one in NumPy and float64.

Every constant, mask, shift and random draw is in the sums: a weight, the share of glances, the
divisor of the noise or a label that is not drawn changes them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.models import sar_head
from jspec.models.sar_head import SarConfig
from jspec.testing.models import tiny_target
from jspec.train.csgd import Csgd, Glance
from jspec.train.falcon import initial_params
from tests.support.numpy_csgd import Options, batch_loss

T, STEPS = 24, 40
KEY = jax.random.key(20241216)


def packed_batch(vocab_size: int) -> dict[str, jax.Array]:
    """Two dialogues and padding; a long one; a text with one position to learn, and another."""
    lengths = [(13, 8), (24,), (7, 16)]
    learnt = [[(5, 8), (10, 13), (2, 7)], [(3, 13), (15, 22)], [(4, 5), (2, 15)]]
    random = np.random.default_rng(7)
    arrays = {
        "tokens": random.integers(0, vocab_size, (3, T)).astype(np.int32),
        "segments": np.full((3, T), -1, np.int32),
        "positions": np.zeros((3, T), np.int32),
        "weights": np.zeros((3, T), np.float32),
    }
    for row, sizes in enumerate(lengths):
        start = 0
        for text, size in enumerate(sizes):
            arrays["segments"][row, start : start + size] = text
            arrays["positions"][row, start : start + size] = np.arange(size)
            start += size
    for row, spans in enumerate(learnt):
        for i, (low, high) in enumerate(spans):
            shift = lengths[row][0] if i == len(spans) - 1 and len(lengths[row]) > 1 else 0
            arrays["weights"][row, shift + low : shift + high] = 1
    return {name: jnp.asarray(array) for name, array in arrays.items()}


CASES = {
    "as released": (5, Options()),
    "paper's schedule, masked stride": (21, Options(schedule="paper", align="masked_stride")),
    "k = 4, block": (1, Options(k=4, noise=0.5, dropout=0.3)),
    "k = 3, nothing learnt where shown": (
        0,
        Options(
            k=3,
            align="masked_stride",
            epochs=5,
            has_loss_on_shown=False,
            temperature=0.7,
            soft_share=0.75,
            token_weight=0.4,
        ),
    ),
    "a plain shift": (9, Options(schedule=None, noise=0.0, dropout=0.0)),
}
"""The step, and the reference's constants; the objective is told those that are not released."""


def objective_of(options: Options, head, target) -> Csgd:
    """The objective with all its own defaults but what the options change."""
    changed = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }
    changed.pop("k", None)
    glance = {
        name: changed.pop(name) for name in ("schedule", "epochs", "align") if name in changed
    }
    if options.schedule is None:
        changed["glance"] = None
    elif glance:
        changed["glance"] = Glance(**glance)
    return Csgd(head=head, target=target, steps=STEPS, **changed)


@pytest.mark.parametrize("case", CASES)
def test_the_objective_is_numpys(case):
    step, options = CASES[case]
    target = tiny_target(scale=0.5)
    # Three likely tokens, so that the head is right now and then, and the text seldom is.
    few = target.params["head_weight"].at[:, :3].multiply(4)
    frozen = dict(target.params) | {"head_weight": few}
    decoder = dataclasses.replace(target.model.config, n_layers=1, windows=())
    head = sar_head.build(SarConfig(decoder=decoder, block_size=options.k))
    # Larger than at the start of a training, so that no loss is near a constant.
    params = jax.tree.map(lambda x: 2 * x, initial_params(head, jax.random.key(1)))
    batch = packed_batch(target.vocab_size)
    objective = objective_of(options, head, target.model)

    @jax.jit
    def run(params, frozen, batch, key, step):
        return objective.loss(params, frozen, batch, key=key, step=step, rows_sharding=None)

    found = run(params, frozen, batch, KEY, jnp.int32(step))
    wanted = batch_loss(
        options,
        target.model.config,
        params,
        frozen,
        batch,
        key=KEY,
        step=step,
        steps=STEPS,
    )
    ours = {"total": found.total, "weight": found.weight}
    ours |= {name: pair[0] for name, pair in found.sums.items()}
    ours |= {f"{n}_of": pair[1] for n, pair in found.sums.items() if n.startswith("agreement")}
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-5, err_msg=name)
    assert all(
        float(found.sums[name][1]) == wanted["weight"]
        for name in ("feature_loss", "soft_loss", "hard_loss", "shown")
    )
    assert (wanted["shown"] > 0) == (options.schedule is not None)
    assert 0 < wanted["agreement_1"] < wanted["agreement_1_of"]
    assert min(wanted[name] for name in ("feature_loss", "soft_loss", "hard_loss")) > 1


def test_glances_are_as_released_by_default():
    assert Glance() == Glance(schedule="code", epochs=20, align="block")
    fields = {field.name: field.default for field in dataclasses.fields(Csgd)}
    assert fields["glance"] == Glance()
