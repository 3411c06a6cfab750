"""Check the contract on shapes: what a drafter breaks is told in one line.

`check_contract` traces every method once and computes nothing. Without it a broken drafter would be
an engine that cannot be compiled, and a long trace.

Letters: B rows, M nodes, W window of a path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jspec.drafters.base import DraftSize, LoadedDrafter
from jspec.errors import UserError
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft, Prompt, Sampling, TargetOutput, Verdict

MEMBERS = ("sizes", "captures", "needs_picks", "init", "size", "propose", "commit")
"""What a drafter has."""

ROWS, CAPACITY, WIDTH, STOPS = 3, 32, 8, 2
"""Sizes of the texts that a drafter is traced with."""


class Broken(Exception):
    """Say in one line what breaks the contract; its cause is the error that a method raised."""


def check_contract(loaded: LoadedDrafter, target) -> None:
    """Look at a drafter's attributes, then trace its methods.

    Raises:
      Broken: the first thing that is wrong.
    """
    drafter = loaded.drafter
    _check_members(drafter, target.model.config.n_layers)
    context = _context()
    state = _traced("init", drafter.init, loaded.params, _prompt(target, drafter))
    for leaf in jax.tree.leaves(state):
        if leaf.shape[:1] != (ROWS,):
            raise Broken(f"init gave an array {_of(leaf)} without the {ROWS} rows on axis 0")
    index = _traced("size", drafter.size, state, context)
    if getattr(index, "shape", None) != () or not jnp.issubdtype(index.dtype, jnp.integer):
        raise Broken("size must give one whole number, an index into sizes")
    randomness = Randomness(
        sampling=context.sampling, length=context.length, mode=Mode.FULL, rule=Rule.WALK
    )
    for number, size in enumerate(drafter.sizes):
        propose = functools.partial(drafter.propose, size=number)
        found = _traced("propose", propose, loaded.params, state, context, randomness)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Draft)):
            raise Broken(f"propose must give a Draft and a state, not {shown(found)}")
        _check_draft(found[0], size)
        _check_state("propose", state, found[1])
        output = _output(target, size, drafter)
        given = (loaded.params, found[1], context, found[0], _verdict(size), output)
        _check_state("commit", state, _traced("commit", drafter.commit, *given))


def _check_members(drafter: Any, n_layers: int) -> None:
    missing = [member for member in MEMBERS if not hasattr(drafter, member)]
    if missing:
        raise Broken(f"{shown(drafter)} has no {', '.join(missing)}")
    try:
        hash(drafter)
    except TypeError as error:
        raise Broken(f"it must be hashable, a frozen dataclass without arrays: {error}") from error
    sizes = drafter.sizes
    is_tuple = isinstance(sizes, tuple) and bool(sizes)
    if not (is_tuple and all(isinstance(size, DraftSize) for size in sizes)):
        raise Broken(f"sizes must be a tuple of DraftSize, not {shown(sizes)}")
    known = [f"enter.{i}" for i in range(n_layers)] + ["final"]
    for capture in drafter.captures:
        if capture not in known:
            raise Broken(
                f"captures has {capture!r}; the target has {known[0]} to {known[-2]}, final"
            )


def _traced(method: str, call: Callable[..., Any], *given: Any) -> Any:
    try:
        return jax.eval_shape(call, *given)
    except UserError:
        raise
    except Exception as error:
        raise Broken(f"{method} failed: {told(error)}") from error


def _check_draft(draft: Draft, size: DraftSize) -> None:
    whole, truth = jnp.dtype(jnp.int32), jnp.dtype(bool)
    expected = {"token": whole, "parent": whole, "depth": whole}
    expected |= {"is_valid": truth, "is_acceptable": truth}
    for field, dtype in expected.items():
        leaf = getattr(draft, field)
        if leaf.shape != (ROWS, size.n_nodes) or leaf.dtype != dtype:
            wanted = f"{dtype.name}[{ROWS}, {size.n_nodes}] for {ROWS} rows of {size.n_nodes} nodes"
            raise Broken(f"propose gave {field} {_of(leaf)}, expected {wanted}")


def _check_state(method: str, before: Any, after: Any) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise Broken(f"{method} gave a state of another structure than init's")
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise Broken(f"{method} gave a state with {_of(new)} where init gave {_of(old)}")


# --- shapes that a drafter is given --------------------------------------------------------------


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _context() -> Context:
    floats: Any = jax.ShapeDtypeStruct((ROWS,), jnp.float32)
    seeds: Any = jax.ShapeDtypeStruct((ROWS,), jnp.uint32)
    truth: Any = jax.ShapeDtypeStruct((ROWS,), bool)
    sampling = Sampling(
        temperature=floats,
        top_k=_ints(ROWS),
        top_p=floats,
        min_p=floats,
        seed=seeds,
        sample=seeds,
        stop_ids=_ints(ROWS, STOPS),
        max_length=_ints(ROWS),
    )
    return Context(
        tokens=_ints(ROWS, CAPACITY),
        length=_ints(ROWS),
        is_active=truth,
        sampling=sampling,
    )


def _features(target, n_rows: int, captures) -> dict[str, Any]:
    shape = (ROWS, n_rows, target.model.config.width)
    return {name: jax.ShapeDtypeStruct(shape, jnp.dtype(target.dtype)) for name in captures}


def _prompt(target, drafter) -> Prompt:
    slots = CAPACITY + max(size.n_nodes for size in drafter.sizes)
    features = _features(target, WIDTH, drafter.captures)
    return Prompt(context=_context(), features=features, width=WIDTH, slots=slots)


def _verdict(size: DraftSize) -> Verdict:
    deep, flat = _ints(ROWS, size.max_depth + 1), _ints(ROWS)
    return Verdict(
        path=deep, tokens=deep, n_accepted=flat, next_token=flat, n_emitted=flat, stop_reason=flat
    )


def _output(target, size: DraftSize, drafter) -> TargetOutput:
    picks = _ints(ROWS, size.n_nodes) if drafter.needs_picks else None
    features = _features(target, size.n_nodes, drafter.captures)
    return TargetOutput(features=features, picks=picks)


# --- words ---------------------------------------------------------------------------------------


def told(error: BaseException) -> str:
    """Tell an error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def shown(value: Any) -> str:
    kind = type(value).__name__
    text = getattr(value, "__name__", None) or repr(value).partition("\n")[0]
    return f"{kind} {text[:60]}" if kind != text else kind


def _of(leaf: Any) -> str:
    return f"{leaf.dtype.name}[{', '.join(map(str, leaf.shape))}]"
