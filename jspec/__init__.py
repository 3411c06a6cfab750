"""Speculative decoding in JAX: several times faster, provably the same text.

    target = jspec.load_target("path/to/llama")
    drafter = jspec.load_drafter("prompt-lookup", target=target)
    for answer in jspec.generate(target, ["Once upon"], drafter=drafter, max_new_tokens=64):
        print(answer.text)

Names are imported when they are first used, so that `import jspec` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jspec import versions

if TYPE_CHECKING:
    from jspec.drafters import Drafter, LoadedDrafter, load_drafter
    from jspec.errors import UserError
    from jspec.infer.answers import Generation, Piece
    from jspec.infer.engine import Engine
    from jspec.infer.generate import generate, stream
    from jspec.infer.loop import decode_loop
    from jspec.infer.prefill import prefill
    from jspec.infer.request import Request, sampling_of
    from jspec.infer.state import Program
    from jspec.models.target import Target, load_target
    from jspec.sharding import make_mesh
    from jspec.state import Draft, KVCache, Sampling, StopReason, Verdict
    from jspec.verify.replay import replay

_HOMES = {
    "Draft": "jspec.state",
    "Drafter": "jspec.drafters",
    "Engine": "jspec.infer.engine",
    "Generation": "jspec.infer.answers",
    "KVCache": "jspec.state",
    "LoadedDrafter": "jspec.drafters",
    "Piece": "jspec.infer.answers",
    "Program": "jspec.infer.state",
    "Request": "jspec.infer.request",
    "Sampling": "jspec.state",
    "StopReason": "jspec.state",
    "Target": "jspec.models.target",
    "UserError": "jspec.errors",
    "Verdict": "jspec.state",
    "decode_loop": "jspec.infer.loop",
    "generate": "jspec.infer.generate",
    "load_drafter": "jspec.drafters",
    "load_target": "jspec.models.target",
    "make_mesh": "jspec.sharding",
    "prefill": "jspec.infer.prefill",
    "replay": "jspec.verify.replay",
    "sampling_of": "jspec.infer.request",
    "stream": "jspec.infer.generate",
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
]

versions.check()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'jspec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jspec")
    except PackageNotFoundError:
        return "unknown"
