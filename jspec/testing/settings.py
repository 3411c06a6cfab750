"""Settings of the law as arrays, for tests that call it without a request."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jspec.state import Sampling

_DEFAULTS = {
    "temperature": (0.0, np.float32),
    "top_k": (0, np.int32),
    "top_p": (1.0, np.float32),
    "min_p": (0.0, np.float32),
    "seed": (0, np.uint32),
    "sample": (0, np.uint32),
    "max_length": (1000, np.int32),
}


def settings(rows: int, *, stop_ids=(-1,), **given) -> Sampling:
    """Greedy rows with no filter, no stop and no limit, except as given.

    Args:
      stop_ids: of every row, or `"rows E"`.
      given: fields of `Sampling`, a number or one a row.
    """

    def column(name: str):
        default, dtype = _DEFAULTS[name]
        values = np.asarray(given.pop(name, default)).astype(dtype)
        return jnp.asarray(np.broadcast_to(values, (rows,)))

    stops = np.atleast_2d(np.asarray(stop_ids, np.int32))
    arrays = {name: column(name) for name in _DEFAULTS}
    assert not given, f"no such settings: {sorted(given)}"
    return Sampling(stop_ids=jnp.asarray(np.broadcast_to(stops, (rows, stops.shape[1]))), **arrays)
