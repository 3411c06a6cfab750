"""E3 compares tiny models in float64, strictly, in a process of its own with 64-bit floats.

    python -m jspec.certify.float64 1,1,2=oracle-tree,none 2,2,2,8=draft-model-tree

Arguments: `data,layer,tensor=name,name,...`, a mesh and drafters of the roster, any number; a
fourth number is the batch size, 8 if not given. With `@tpu` or `@gpu` behind it, the programs have
the form of that platform, kernels interpreted; what they are compared with is the CPU's. One JSON
object is printed.

In reading order: `strictly_equal`, which starts the process; `main`, which is the process; and the
grid of EasySpec's settings, in which every two values of any two factors meet in some case.

Source: pairwise covering, the greedy way (Cohen et al., "The AETG system", 1997).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jspec.certify import proof
from jspec.certify.certificate import CheckResult
from jspec.certify.roster import ROSTER, entry
from jspec.checkpoints.target import Target
from jspec.console.compile_cache import keep_compiled_programs
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.ops.platform import running_as_on
from jspec.sharding import make_mesh
from jspec.testing.compile_options import light, xla_flags
from jspec.testing.models import on_mesh, tiny_target

DEVICES = 8
_ALL = ",".join(entry.name for entry in ROSTER)
CASES = (f"1,1,1={_ALL}", "1,1,2=oracle-tree", "2,2,2=none,draft-model-tree", "8,1,1=oracle-tree")
FEW = ("2,2,2=oracle-tree",)

QUICK_NAMES = ",".join(entry.name for entry in ROSTER if entry.is_quick)
ELSEWHERE = (f"1,1,1={QUICK_NAMES}@tpu", "2,2,2=oracle-tree@tpu", f"1,1,1={QUICK_NAMES}@gpu")
FEW_ELSEWHERE = ("1,1,2=oracle-tree@tpu", "1,1,1=oracle-tree@gpu")
"""In the form of accelerators: prefix and tail apart, accepted rows written at commit."""


def strictly_equal(cases: Sequence[str], *, is_light: bool = False) -> CheckResult:
    """Compare drafters on meshes with plain decoding, token for token, no excuse.

    Args:
      is_light: compile fast.
    """
    command = [sys.executable, "-m", "jspec.certify.float64", *cases]
    flags = [os.environ.get("XLA_FLAGS", ""), xla_flags(light()) if is_light else ""]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags).strip()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return CheckResult(problems=(f"the process failed: {lines[-1]}",))
    found = json.loads(done.stdout.splitlines()[-1])
    problems = [f"{case}: {line}" for case, lines in found["problems"].items() for line in lines]
    wanted = sum(len(case.partition("=")[2].split(",")) for case in cases)
    if len(found["problems"]) != wanted:
        problems.append(f"{len(found['problems'])} combinations were run, not {wanted}")
    return CheckResult(
        n_tokens=found["n_tokens"] * len(found["problems"]),
        problems=tuple(problems),
        note=f"{wanted} pairs of mesh and drafter",
    )


def main(cases: Sequence[str]) -> None:
    """Decode every case, and print where it differs from plain decoding on one device."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    keep_compiled_programs()
    sizes = {"n_heads": 8, "n_kv_heads": 8, "head_dim": 4, "vocab_size": 64}
    alone = tiny_target(dtype=jnp.float64, **sizes)
    requests = proof.mixed_requests(alone, 16)
    plain = proof.decode(alone, requests, batch_size=1)
    texts = proof.texts_of(requests, plain)
    problems = {}
    for case in cases:
        asked, _, platform = case.partition("@")
        mesh_sizes, _, names = asked.partition("=")
        data, layer, tensor, *batch = (int(n) for n in mesh_sizes.split(","))
        target = on_mesh(alone, make_mesh(data=data, layer=layer, tensor=tensor))
        for name in names.split(","):
            drafter = _drafter(name, alone, target, texts)
            with running_as_on(platform) if platform else contextlib.nullcontext():
                results = proof.decode(target, requests, drafter, batch_size=(*batch, 8)[0])
            problems[f"{mesh_sizes} {name} {platform}"] = proof.unequal(results, plain)
    n_tokens = sum(len(result.tokens) for result in plain)
    print(json.dumps({"n_tokens": n_tokens, "problems": problems}))


def _drafter(name: str, alone: Target, target: Target, texts) -> LoadedDrafter:
    """Make a drafter of the roster for a target on a mesh; every device holds all of its weights.

    EasySpec places its weights by itself.
    """
    found = entry(name)
    if found.method == "easyspec":
        return found.make(target, texts)
    drafter = found.make(alone, texts)
    everywhere = NamedSharding(target.mesh, PartitionSpec())
    return dataclasses.replace(drafter, params=jax.device_put(drafter.params, everywhere))


# --- the grid ------------------------------------------------------------------------------------

Case = Mapping[str, str]

FACTORS: Mapping[str, tuple[str, ...]] = {
    "plan": tuple(plan.value for plan in Parallelism),
    "mesh": ("1,1,1", "1,2,1", "1,2,2", "1,4,2", "2,2,2"),
    "calibration": ("never", "prefill", "mismatch", "round"),
    "size": ("1", "2", "3", "5"),
    "width": ("1", "2", "3"),
    "batch": ("1", "8"),
}
"""Cases of a drafter of six layers. All temperatures and filters are in the rows of every case."""


def covering() -> tuple[Case, ...]:
    """Choose cases in which all possible pairs meet; each next one has the most that are new."""
    cases = [
        case
        for values in itertools.product(*FACTORS.values())
        if _is_possible(case := dict(zip(FACTORS, values, strict=True)))
    ]
    missing, chosen = {pair for case in cases for pair in pairs(case)}, []
    while missing:
        best = max(cases, key=lambda case: len(missing & set(pairs(case))))
        missing -= set(pairs(best))
        chosen.append(best)
    return tuple(chosen)


def pairs(case: Case) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Values of two factors that meet in a case."""
    return itertools.combinations(case.items(), 2)


def _is_possible(case: Case) -> bool:
    """Plan A puts layers beside each other, and rows are split over `data`."""
    data, layer, _ = map(int, case["mesh"].split(","))
    return (layer > 1 or not case["plan"].startswith("A")) and int(case["batch"]) % data == 0


def argument_of(case: Case) -> str:
    """Write a case as an argument of this module: mesh, batch, and the drafter."""
    options = ":".join(f"{key}={case[key]}" for key in ("plan", "size", "width", "calibration"))
    return f"{case['mesh']},{case['batch']}=easyspec:{options}"


if __name__ == "__main__":
    main(sys.argv[1:])
