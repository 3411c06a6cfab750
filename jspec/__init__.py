"""Speculative decoding in JAX: fewer passes of the model, provably the same text.

    target = jspec.load_target("path/to/llama")
    drafter = jspec.load_drafter("prompt-lookup", target=target)
    for answer in jspec.generate(target, ["Once upon"], drafter=drafter, max_new_tokens=64):
        print(answer.text)

Names and modules are imported when they are first used, so that `import jspec` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jspec import versions
from jspec.lazy import submodules

if TYPE_CHECKING:
    from jspec import aot as aot
    from jspec import bench as bench
    from jspec import certify as certify
    from jspec import checkpoints as checkpoints
    from jspec import config as config
    from jspec import console as console
    from jspec import drafters as drafters
    from jspec import hosts as hosts
    from jspec import infer as infer
    from jspec import law as law
    from jspec import models as models
    from jspec import ops as ops
    from jspec import plan as plan
    from jspec import sharding as sharding
    from jspec import state as state
    from jspec import testing as testing
    from jspec import train as train
    from jspec import verify as verify
    from jspec.checkpoints.target import Target, load_target
    from jspec.drafters import Drafter, LoadedDrafter, load_drafter
    from jspec.errors import UserError
    from jspec.infer.engine import Engine
    from jspec.infer.generate import generate, stream
    from jspec.infer.loop import decode_loop
    from jspec.infer.prefill import prefill
    from jspec.infer.replay import replay
    from jspec.infer.request import Request, sampling_of
    from jspec.infer.results import Generation, Piece, Stats, total_stats
    from jspec.infer.state import Program
    from jspec.sharding import make_mesh
    from jspec.state import Draft, KVCache, Sampling, StopReason, Verdict

    __version__: str

_HOMES = {
    "Draft": "jspec.state",
    "Drafter": "jspec.drafters",
    "Engine": "jspec.infer.engine",
    "Generation": "jspec.infer.results",
    "KVCache": "jspec.state",
    "LoadedDrafter": "jspec.drafters",
    "Piece": "jspec.infer.results",
    "Program": "jspec.infer.state",
    "Request": "jspec.infer.request",
    "Sampling": "jspec.state",
    "Stats": "jspec.infer.results",
    "StopReason": "jspec.state",
    "Target": "jspec.checkpoints.target",
    "UserError": "jspec.errors",
    "Verdict": "jspec.state",
    "decode_loop": "jspec.infer.loop",
    "generate": "jspec.infer.generate",
    "load_drafter": "jspec.drafters",
    "load_target": "jspec.checkpoints.target",
    "make_mesh": "jspec.sharding",
    "prefill": "jspec.infer.prefill",
    "replay": "jspec.infer.replay",
    "sampling_of": "jspec.infer.request",
    "stream": "jspec.infer.generate",
    "total_stats": "jspec.infer.results",
}

__all__ = [
    "Draft",
    "Drafter",
    "Engine",
    "Generation",
    "KVCache",
    "LoadedDrafter",
    "Piece",
    "Program",
    "Request",
    "Sampling",
    "Stats",
    "StopReason",
    "Target",
    "UserError",
    "Verdict",
    "decode_loop",
    "generate",
    "load_drafter",
    "load_target",
    "make_mesh",
    "prefill",
    "replay",
    "sampling_of",
    "stream",
    "total_stats",
]

versions.check()

if not TYPE_CHECKING:  # or a misspelt name would be right for every type checker
    _load_module = submodules(__name__)

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return versions.installed("jspec").get("jspec", "unknown")
        if name not in _HOMES:
            return _load_module(name)
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
