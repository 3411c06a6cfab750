"""Several hosts as one machine, through `jax.distributed`."""

from __future__ import annotations

import jax

from jspec.errors import UserError

_EXPECTED = "auto or ADDRESS:PORT,COUNT,INDEX, such as 10.0.0.2:1234,2,0"


def join_hosts(spec: str | None) -> None:
    """Connect this process to the others; nothing where `spec` is None.

    Raises:
      UserError: a spec that cannot be read, or hosts that do not find each other.
    """
    if spec is None:
        return
    options = {} if spec == "auto" else _parse(spec)
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--hosts {spec}: the hosts do not find each other ({first})") from None


def _parse(spec: str) -> dict:
    parts = spec.split(",")
    if len(parts) != 3 or ":" not in parts[0] or not all(part.isdigit() for part in parts[1:]):
        raise UserError(f"--hosts: expected {_EXPECTED}, given {spec!r}")
    count, index = int(parts[1]), int(parts[2])
    if index >= count:
        raise UserError(f"--hosts: index {index} of {count} hosts; they count from 0")
    return {"coordinator_address": parts[0], "num_processes": count, "process_id": index}
