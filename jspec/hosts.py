"""Several hosts as one machine, through `jax.distributed`: all run the same program in step.

In reading order: joining them; what they decide together, since a host that goes another way makes
all others wait for it; arrays whose parts are on several hosts.

On one host nothing here costs anything, and nothing is compiled.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.errors import UserError

T = TypeVar("T")

PATIENCE_S = 300
"""For hosts that are started one after the other."""

_EXPECTED = "auto or ADDRESS:PORT,COUNT,INDEX, such as 10.0.0.2:1234,2,0"


# --- joining -------------------------------------------------------------------------------------


def join_hosts(spec: str | None, *, patience_s: float = PATIENCE_S) -> None:
    """Connect this process to the others; nothing where `spec` is None.

    Where they do not all come, the process ends with one line and exit code 2: JAX itself would
    abort it, in C++ and with a stack trace.

    Args:
      patience_s: seconds in which all have to be here.

    Raises:
      UserError: a spec that cannot be read, or hosts that do not find each other.
    """
    if spec is None:
        return
    options = {} if spec == "auto" else _parse(spec)
    alarm = threading.Timer(patience_s, _give_up, (spec, patience_s))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=int(2 * patience_s))
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "; give ADDRESS:PORT,COUNT,INDEX where no cluster tells" if not options else ""
        raise UserError(f"hosts {spec}: they do not find each other ({first}){remedy}") from None
    finally:
        alarm.cancel()


def _give_up(spec: str, patience_s: float) -> None:
    told = f"after {patience_s:.0f} s they have not all found each other"
    remedy = "start the same command on each, with its own index"
    print(f"error: hosts {spec}: {told}; {remedy}", file=sys.stderr, flush=True)
    os._exit(2)


def _parse(spec: str) -> dict:
    parts = spec.split(",")
    if len(parts) != 3 or ":" not in parts[0] or not all(part.isdigit() for part in parts[1:]):
        raise UserError(f"hosts: expected {_EXPECTED}, given {spec!r}")
    count, index = int(parts[1]), int(parts[2])
    if index >= count:
        raise UserError(f"hosts: index {index} of {count}; they count from 0")
    return {"coordinator_address": parts[0], "num_processes": count, "process_id": index}


def are_joined() -> bool:
    """Whether this process is one of several; asks no device, so that it is known at once."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return not are_joined() or jax.process_index() == 0


def check_all_devices(mesh: Mesh) -> None:
    """Refuse a mesh that leaves out devices of some process.

    Raises:
      UserError: how many devices there are.
    """
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise UserError(
            f"{jax.process_count()} processes have {jax.device_count()} devices, and "
            f"{' x '.join(mesh.axis_names)} = {mesh.size}; give a mesh of all of them"
        )


# --- deciding together ---------------------------------------------------------------------------


def any_host(is_so: bool) -> bool:
    """Whether it is so on any host; all hosts ask at the same place."""
    return bool(np.any(_of_all_hosts(np.int32(is_so))))


def agreed(check: Callable[[], T]) -> T:
    """What `check` returns, where no host finds a mistake; else all hosts raise.

    Raises:
      UserError: this host's own mistake, or which host's standard error tells it.
    """
    if not are_joined():
        return check()
    mistake, found = None, None
    try:
        found = check()
    except UserError as error:
        mistake = error
    at_fault = np.flatnonzero(_of_all_hosts(np.int32(mistake is not None)))
    if mistake is not None:
        raise mistake
    if at_fault.size:
        raise UserError(f"host {at_fault[0]} cannot go on; its standard error says why")
    return found  # type: ignore[return-value]  # there is no mistake


def check_same(**given: Any) -> None:
    """Refuse to go on where hosts were given different things, by what is compared.

    Values are compared by what they show of themselves (`repr`).

    Raises:
      UserError: the first that differs, on all hosts.
    """
    if not are_joined():
        return
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in given.values()]
    table = _of_all_hosts(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    for i, name in enumerate(given):
        others = np.flatnonzero(np.any(table[:, i] != table[0, i], axis=1))
        if others.size:
            raise UserError(
                f"host {others[0]} and host 0 differ in their {name.replace('_', ' ')}; give the "
                "same command on all hosts, with the same files"
            )


def from_first(value: T) -> T:
    """What the first host has, on all of them. It must be plain JSON."""
    if not are_joined():
        return value
    from jax.experimental import multihost_utils

    data = json.dumps(value).encode() if is_first() else b""
    size = int(_of_all_hosts(np.int64(len(data)).astype(np.int32))[0])
    sent = np.frombuffer(data.ljust(size, b" ")[:size], np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))))


def _of_all_hosts(value: np.generic | np.ndarray) -> np.ndarray:
    """A small value of every host, stacked."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def one_after_another(work: Callable[[], T]) -> T:
    """What `work` returns: the first host does it alone, then all others at once.

    For work whose result the others find done, in a file. It may take hours: hosts wait without
    using their devices.

    Raises:
      Exception: what `work` raises, on that host; the others go on and find out for themselves.
    """
    if not are_joined():
        return work()
    if is_first():
        try:
            return work()
        finally:
            _meet()
    _meet()
    return work()


_meetings = itertools.count()


def _meet() -> None:
    """Wait for all hosts, at the coordinator: a collective of devices would give up too soon."""
    from jax._src import distributed  # there is no public name for it

    client = distributed.global_state.client
    assert client is not None
    client.wait_at_barrier(f"jspec-{next(_meetings)}", timeout_in_ms=24 * 3600 * 1000)


# --- arrays --------------------------------------------------------------------------------------


def fetch(tree: Any) -> Any:
    """The numbers of arrays, wherever their parts are; all hosts fetch the same at the same place.

    Parts that are on other hosts are brought here by one small program, compiled once a structure.
    """
    if jax.process_count() > 1:
        away = [leaf for leaf in jax.tree.leaves(tree) if not _is_here(leaf)]
        if away:
            tree = _everywhere(away[0].sharding.mesh)(tree)
    return jax.device_get(tree)


def fetch_soon(tree: Any) -> None:
    """Begin to bring here the numbers that `fetch` is to give, where none of them is away."""
    for leaf in jax.tree.leaves(tree):
        leaf.copy_to_host_async()


def _is_here(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


@functools.cache
def _everywhere(mesh: Mesh) -> Callable[[Any], Any]:
    """Jitted: gives every device of the mesh all of every array. Compiles anew for other shapes."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
