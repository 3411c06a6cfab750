"""A round stays on the device: its program calls nothing on the host, whatever the drafter."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jspec.certify.roster import ROSTER
from jspec.infer.prefill import prefill
from jspec.infer.round import decode_round
from jspec.infer.state import Program
from jspec.law import Mode
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings

ROWS, CAPACITY = 2, 48
TARGET = tiny_target(vocab_size=23, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
TEXTS = np.random.default_rng(0).integers(0, TARGET.vocab_size, (4, CAPACITY)).tolist()
TO_THE_HOST = ("callback", "infeed", "outfeed", "device_put")


def primitives(jaxpr) -> Iterator[str]:
    """Names of all that a program does, its loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


def leaving(function, *given) -> list[str]:
    names = set(primitives(jax.make_jaxpr(function)(*given).jaxpr))
    assert "dot_general" in names or not given
    return sorted(name for name in names if any(word in name for word in TO_THE_HOST))


@pytest.mark.parametrize(
    "entry", [e for e in ROSTER if e.is_quick or e.method == "diffuspec"], ids=lambda e: e.name
)
def test_nothing_of_a_round_leaves_the_device(entry):
    loaded = entry.make(TARGET, TEXTS)
    program = Program(target=TARGET.model, drafter=loaded.drafter, mode=Mode.PLAIN)
    params = (TARGET.params, loaded.params)
    sampling = settings(ROWS, temperature=1.0, max_length=CAPACITY - 1)
    tokens, length = jnp.ones((ROWS, 8), jnp.int32), jnp.full((ROWS,), 8, jnp.int32)
    start = jax.eval_shape(
        lambda: prefill(params, program, tokens, length, sampling, capacity=CAPACITY)
    )
    assert leaving(lambda state: decode_round(params, program, state), start) == []


def test_a_callback_would_be_seen():
    def told(x):
        jax.debug.callback(print, x)
        return jnp.dot(x, x)

    assert leaving(jax.jit(told), jnp.ones(2)) == ["debug_callback"]
