"""The sections of a first look, and for which kind of machine they measure what.

In reading order: profiles, what a run holds (`Look`), and a function a section, from the running
record to its part of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.shapes import n_parameters, random_model
from experiments.machine.cache_writes import (
    CacheShape,
    commit_variants,
    layout_variants,
    write_variants,
)
from experiments.machine.fixed_context import Standing, program_of
from experiments.machine.precision import logits_moved, product_errors
from jspec.bench.timing import interleaved
from jspec.models.model import Model
from jspec.state import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What is measured on a kind of machine.

    Attributes:
      target: shape of the target; small: of a model as small as a drafter.
      contexts, rows, nodes: over which r(n) is measured.
      chunks: rounds a dispatch.
      copied_bytes: size of the array that gives the copy bandwidth.
      calls: repeats of a variant; rounds: of the loop in one call.
    """

    target: str
    small: str
    dtype: str
    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    chunks: tuple[int, ...] = (1, 4, 8, 16, 32)
    copied_bytes: int = 2**30
    calls: int = 7
    rounds: int = 32


PROFILES = {
    "gpu": Profile(
        target="7b", small="wide-14m", dtype="bfloat16", contexts=(512, 4096), rows=(1, 4)
    ),
    "cpu": Profile(
        target="wide-14m",
        small="tiny",
        dtype="float32",
        contexts=(128, 512),
        rows=(1, 4),
        copied_bytes=2**28,
        rounds=16,
    ),
    "tiny": Profile(
        target="tiny",
        small="tiny",
        dtype="float32",
        contexts=(32,),
        rows=(1,),
        nodes=(1, 4),
        chunks=(1, 4),
        copied_bytes=2**20,
        calls=2,
        rounds=4,
    ),
}


@dataclasses.dataclass
class Look:
    """One run: the loaded target and what is known so far."""

    profile: Profile
    model: Model
    params: Params
    record: dict[str, Any]
    out: Path
    hlo: Path | None

    def save(self) -> None:
        """Write what is known so far."""
        (self.out / "look.json").write_text(json.dumps(self.record, indent=1) + "\n")

    @property
    def is_static(self) -> bool:
        """The loop form that the engine takes on this backend."""
        return jax.default_backend() == "gpu"

    def keep_text(self, name: str, compiled) -> dict[str, int]:
        """Save a program's text where asked to; returns what it allocates."""
        if self.hlo is not None:
            self.hlo.mkdir(parents=True, exist_ok=True)
            (self.hlo / f"{name}.txt").write_text(compiled.as_text())
        memory = compiled.memory_analysis()
        return {
            "aliased_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }


def copy_bandwidth(look: Look) -> dict:
    """Bytes read and written a second by a large addition in place."""
    profile = look.profile
    size = profile.copied_bytes // 4
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros((size,), jnp.float32)]

    def call():
        held[0] = add(held[0])
        return held[0]

    seconds = interleaved({"copy": call}, rounds=profile.calls, warm_up=3)["copy"]
    return {"GB_per_s": 2 * 4 * size / seconds["median"] / 1e9, "seconds": seconds}


def bytes_a_round(look: Look, rows: int, context: int) -> int:
    """What a plain round has to read: weights without the embedding table, and live keys/values."""
    config = look.model.config
    size = jnp.dtype(look.profile.dtype).itemsize
    embedding = 0 if config.has_tied_head else config.vocab_size * config.width
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    return size * (n_parameters(look.params) - embedding + rows * context * per_token)


def plain(look: Look) -> dict:
    """Plain decoding against the bandwidth limit, one row."""
    profile, found = look.profile, {}
    bandwidth = look.record["copy"]["GB_per_s"]
    sheet = look.record["device"]["data_sheet_GB_per_s"]
    for context in profile.contexts:
        standing = Standing(look.model, look.params, 1, context)
        program = program_of(look.model, is_static=look.is_static)
        call = standing.decode(program, rounds=profile.rounds)
        seconds = interleaved({"plain": call}, rounds=profile.calls)["plain"]
        a_round = seconds["median"] / profile.rounds
        moved = bytes_a_round(look, 1, context)
        rate = moved / a_round / 1e9
        found[str(context)] = {
            "ms_a_round": 1e3 * a_round,
            "ms_range": [1e3 * seconds[end] / profile.rounds for end in ("min", "max")],
            "GB_a_round": moved / 1e9,
            "GB_per_s": rate,
            "share_of_copy": rate / bandwidth,
            "share_of_data_sheet": rate / sheet if sheet else None,
            "first_call_s": seconds["first_s"],
            **look.keep_text(f"plain_{context}", standing.compiled(program, rounds=profile.rounds)),
        }
    return found


def nodes(look: Look) -> dict:
    """r(n): a round of n nodes over a round of one, in the same loop."""
    profile, found = look.profile, look.record.setdefault("nodes", {})
    for rows in profile.rows:
        for context in profile.contexts:
            if f"{rows} x {context}" in found:
                continue
            standing = Standing(look.model, look.params, rows, context)
            calls = {
                n: standing.decode(
                    program_of(look.model, n, is_static=look.is_static), rounds=profile.rounds
                )
                for n in profile.nodes
            }
            seconds = interleaved(calls, rounds=profile.calls)
            found[f"{rows} x {context}"] = {
                str(n): {
                    "ms_a_round": 1e3 * times["median"] / profile.rounds,
                    "r": times["median"] / seconds[1]["median"],
                    "r_range": [times[end] / seconds[1]["median"] for end in ("min", "max")],
                }
                for n, times in seconds.items()
            }
            look.save()
    return found


def loops(look: Look) -> dict:
    """Loop forms and chunk sizes, for the target and for a model as small as a drafter."""
    profile, found = look.profile, {}
    small, small_params = random_model(profile.small, profile.dtype)
    total = max(profile.chunks)
    for name, model, params in (
        ("target", look.model, look.params),
        ("small model", small, small_params),
    ):
        standing = Standing(model, params, 1, profile.contexts[0])
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for form, is_static in (("while", False), ("static", True)):
            for rounds in profile.chunks:
                program = program_of(model, is_static=is_static)
                for way, fetches in (("", False), (" + fetch", True)):
                    calls[form + way, rounds] = standing.decode(
                        program, rounds=rounds, calls=total // rounds, fetches=fetches
                    )
        seconds = interleaved(calls, rounds=profile.calls)
        found[name] = {
            f"{form} x {rounds}": {
                "us_a_round": 1e6 * times["median"] / (total // rounds * rounds),
                "us_range": [
                    1e6 * times[end] / (total // rounds * rounds) for end in ("min", "max")
                ],
            }
            for (form, rounds), times in seconds.items()
        }
    return found


def cache(look: Look) -> dict:
    """Ways to write rows, to keep a path, and to lay out layers; eight rows."""
    profile, config = look.profile, look.model.config
    shape = CacheShape(
        rows=8,
        heads=config.n_kv_heads,
        slots=profile.contexts[-1] + 64,
        width=config.head_dim,
    )
    repeats, layers = profile.rounds, min(config.n_layers, 8)
    found = {}
    for name, variants in (
        ("write 8 rows", write_variants(shape, profile.dtype, repeats)),
        ("keep a path", commit_variants(shape, profile.dtype, repeats)),
        (f"{layers} layers", layout_variants(shape, profile.dtype, layers, repeats)),
    ):
        seconds = interleaved(variants, rounds=profile.calls)
        found[name] = {
            way: {
                "us": 1e6 * times["median"] / (repeats + 1),
                "us_range": [1e6 * times[end] / (repeats + 1) for end in ("min", "max")],
            }
            for way, times in seconds.items()
        }
    return found


def exactness(look: Look) -> dict:
    """Errors of products, and how far logits move with the number of rows."""
    counts = tuple(n for n in look.profile.nodes if n > 1)
    return {
        "products": product_errors(),
        "logits": logits_moved(
            look.params, look.model, context=look.profile.contexts[0], nodes=counts
        ),
    }


def graphs(look: Look) -> dict:
    """XLA's command buffers (CUDA graphs) in the static loop.

    Whole loops as graphs are a flag of the process:
    `XLA_FLAGS=--xla_gpu_enable_command_buffer=+WHILE`, with another --out.
    """
    profile = look.profile
    program = program_of(look.model, is_static=True)
    standing = Standing(look.model, look.params, 1, profile.contexts[0])
    settings = {
        "default": {},
        "graphs from 1 operation": {"xla_gpu_graph_min_graph_size": 1},
        "no graphs": {"xla_gpu_enable_command_buffer": ""},
    }
    calls = {}
    for name, options in settings.items():
        compiled = standing.compiled(program, rounds=profile.rounds, options=options)

        def call(compiled=compiled):
            return standing.keep(compiled((standing.params, ()), standing.generation(program)))

        calls[name] = call
    return {
        name: {
            "us_a_round": 1e6 * times["median"] / profile.rounds,
            "us_range": [1e6 * times[end] / profile.rounds for end in ("min", "max")],
        }
        for name, times in interleaved(calls, rounds=profile.calls).items()
    }


SECTIONS: dict[str, Callable[[Look], dict]] = {
    "copy": copy_bandwidth,
    "plain": plain,
    "nodes": nodes,
    "loops": loops,
    "cache": cache,
    "exactness": exactness,
    "graphs": graphs,
}
