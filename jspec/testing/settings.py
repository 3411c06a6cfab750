"""Makes settings of the law as arrays, for tests that call it without a request."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jspec.infer.request import Request, sampling_of
from jspec.state import Sampling


def settings(rows: int, *, stop_ids=(-1,), **given) -> Sampling:
    """Make greedy rows with no filter, no stop and no limit, except as given.

    Args:
      stop_ids: of every row, or `"rows E"`.
      given: fields of `Sampling`, a number or one a row.
    """
    greedy = Request(tokens=(0,), max_new_tokens=999)
    usual = vars(sampling_of([greedy], max_length=1000, max_stop_ids=1))
    assert usual.keys() >= given.keys(), f"no such settings: {sorted(given)}"

    def column(name: str, default: np.ndarray):
        values = np.asarray(given.get(name, default)).astype(default.dtype)
        return jnp.asarray(np.broadcast_to(values, (rows,)))

    stops = np.atleast_2d(np.asarray(stop_ids, np.int32))
    stops = jnp.asarray(np.broadcast_to(stops, (rows, stops.shape[1])))
    columns = {name: column(name, usual[name]) for name in usual if name != "stop_ids"}
    return Sampling(stop_ids=stops, **columns)
