"""Hosts that are processes of this computer, with simulated devices.

In reading order: starting some processes together, and what one does that decodes:

    python -m tests.support.hosts FOLDER alone|ADDRESS:PORT,COUNT,INDEX CASES

It decodes `requests()` once for every case, in float64, with the models `target` and `small` of the
folder, and writes what it found there: `alone.json`, or `0.json`, `1.json`, ...
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEVICES = 4
"""Of one process."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a process left."""

    code: int
    out: str
    err: str


def run_together(
    commands: Sequence[Sequence[Any]],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> list[Said]:
    """Runs Python with these arguments, all at once, and waits for all."""
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
        pairs = zip(started, said, strict=True)
        return [Said(process.returncode, out, err) for process, (out, err) in pairs]
    finally:
        for process in started:
            process.kill()


# --- a process that decodes ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One way to decode.

    Attributes:
      drafter: its name; it drafts with the folder's `small` if it has weights.
      mesh: sizes of its axes; a process that is alone uses one device.
    """

    name: str
    drafter: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 1
    mesh: dict[str, Any] = dataclasses.field(default_factory=dict)


def requests() -> list:
    """Prompts of unequal lengths, greedy and sampled, with filters, and a stop token."""
    from jspec.infer.request import Request

    def one(n_tokens: int, max_new_tokens: int, **settings) -> Request:
        tokens = tuple((7 * i + n_tokens) % 61 for i in range(n_tokens))
        return Request(tokens=tokens, max_new_tokens=max_new_tokens, **settings)

    return [
        one(5, 12),
        one(17, 7, temperature=0.8, seed=3),
        one(2, 14, temperature=1.3, top_k=9, top_p=0.9, seed=1, sample=4),
        one(11, 10, stop_ids=(1, 17, 30)),
        one(1, 8, temperature=0.5, min_p=0.05, seed=2**32 - 1),
    ]


def decode(folder: Path, case: Case, *, is_alone: bool) -> dict[str, Any]:
    """Texts with their traces, and what was traced or compiled after the warm-up."""
    from jspec.checkpoints.target import load_target
    from jspec.drafters import load_drafter
    from jspec.infer.compiling import compile_counts
    from jspec.infer.engine import Engine
    from jspec.sharding import make_mesh

    mesh = make_mesh() if is_alone else make_mesh(**case.mesh)
    target = load_target(folder / "target", dtype="float64", mesh=mesh)
    small = None if case.drafter == "none" else folder / "small"
    drafter = load_drafter(case.drafter, small, target=target, **case.options)
    engine = Engine(target, drafter, batch_size=case.batch_size, max_length=64, trace=True)
    asked = requests()
    fullest = max(asked, key=lambda request: (request.mode.value == "full", len(request.tokens)))
    engine.warm_up([fullest])
    before = compile_counts()
    ordered = engine.decode(asked)
    spent = compile_counts().since(before)
    return {
        "tokens": [result.tokens for result in ordered],
        "logprobs": [[token.logprob for token in result.trace or ()] for result in ordered],
        "accepted": sum(result.stats.draft_tokens_accepted for result in ordered),
        "compiled": [spent.traces, spent.lowerings, spent.compilations],
    }


def main(folder: str, spec: str, cases: str) -> None:
    import jax

    from jspec.hosts import join_hosts

    is_alone = spec == "alone"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if is_alone else DEVICES)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    join_hosts(None if is_alone else spec)
    found = {
        case["name"]: decode(Path(folder), Case(**case), is_alone=is_alone)
        for case in json.loads(cases)
    }
    name = "alone" if is_alone else str(jax.process_index())
    (Path(folder) / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
