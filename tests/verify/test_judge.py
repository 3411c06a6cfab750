"""What the law's pick is worth: its log-probability, and its lead over the runner-up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.law import Mode
from jspec.testing.settings import settings
from jspec.verify.judge import judge

ROWS = {
    "a tie leads by nothing": ([2.0, 5.0, 5.0, 1.0], 1, 0.0),
    "one leads by what it is ahead": ([2.0, 5.0, 4.5, 1.0], 1, 0.5),
    "the only one leads by everything": ([-np.inf, 5.0, -np.inf, -np.inf], 1, np.inf),
}


@pytest.mark.parametrize("mode", [Mode.GREEDY, Mode.FULL])
@pytest.mark.parametrize("case", ROWS)
def test_a_greedy_pick_leads_the_best_other_token(case, mode):
    """Of ties the lowest id is picked, and the others are its runners-up."""
    logits, token, gap = ROWS[case]
    noise = None if mode is Mode.GREEDY else jnp.zeros((1, 4))
    says = judge(jnp.asarray([logits]), settings(1), noise, mode, trace=True)
    assert says.logprob is not None and says.gap is not None
    assert (int(says.token[0]), float(says.gap[0])) == (token, gap)
    wanted = logits[token] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(says.logprob, wanted, atol=1e-6)
    assert judge(jnp.asarray([logits]), settings(1), noise, mode).gap is None
