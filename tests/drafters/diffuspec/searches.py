"""What the tests of the search share: it jitted, random cases, and paths as Python values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jspec.drafters.diffuspec import lattice as lattices
from jspec.drafters.diffuspec.lattice import Lattice, first_stop
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.search import Paths, search
from tests.drafters.diffuspec.oracles import Choices, Table, look_up

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
V = 12

candidates, perturbed = (
    jax.jit(make, static_argnames=("cap", "mass"))
    for make in (lattices.candidates, lattices.perturbed)
)


@functools.partial(
    jax.jit,
    static_argnames=("beam", "weight", "eos_rule", "length_normalised"),
)
def run(lattice, last=None, table=None, stop_ids=None, **options) -> Paths:
    """The search with a table as its proxy; no stop ids if not given."""
    proxy = None if table is None else functools.partial(look_up, table)
    stops = jnp.full((lattice.ids.shape[0], 1), -1, jnp.int32) if stop_ids is None else stop_ids
    return search(lattice, last, proxy, stop_ids=stops, options=SearchOptions(**options))


def one_row(paths: Paths, row: int = 0) -> list[tuple[tuple[int, ...], float]]:
    """The paths that there are."""
    tokens, length, score = (np.asarray(x)[row] for x in (paths.tokens, paths.length, paths.score))
    return [
        (tuple(tokens[w, : length[w]].tolist()), float(score[w]))
        for w in range(len(score))
        if np.isfinite(score[w])
    ]


def row_of(lattice: Lattice, row: slice) -> Lattice:
    return jax.tree.map(lambda x: x[row], lattice)


class Case:
    """A random batch: log-probabilities, a proxy, what came before, stop tokens."""

    def __init__(self, seed: int, *, rows=2, slots=4, order=3, cap=4, mass=0.9, stops=(), v=V):
        rng = np.random.default_rng(seed)
        logits = 1.5 * rng.standard_normal((rows, slots, v))
        self.logprobs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        self.table = Table(rng, v, order)
        self.last = jnp.asarray(rng.integers(0, v, (rows, order - 1)), jnp.int32)
        self.stops = set(stops)
        self.stop_ids = jnp.asarray([[*stops, -1]] * rows, jnp.int32)
        self.lattice = candidates(self.logprobs, cap=cap, mass=mass)
        self.rows, self.slots = rows, slots

    def search(self, **options) -> Paths:
        return run(self.lattice, self.last, self.table.logprobs, self.stop_ids, **options)

    def choices(self, row: int, weight: float = 0.5) -> Choices:
        ids, logprobs = self.lattice.ids[row], self.lattice.logprobs[row]
        return Choices(ids, logprobs, self.last[row].tolist(), self.table, weight)

    def depth(self, row: int) -> int:
        argmax = self.lattice.ids[:, :, 0]
        return min(int(first_stop(argmax, self.stop_ids)[row]), self.slots)


def assert_found(paths: Paths, row: int, wanted) -> None:
    found = one_row(paths, row)
    assert [path for path, _ in found] == [path for _, path in wanted]
    np.testing.assert_allclose([s for _, s in found], [s for s, _ in wanted], atol=1e-4)
