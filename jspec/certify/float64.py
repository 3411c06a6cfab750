"""E3: float64, tiny models, strictly equal, in a process of its own with 64-bit floats.

    python -m jspec.certify.float64 1,1,2=oracle-tree,none 2,2,2,8=draft-model-tree

Arguments: `data,layer,tensor=name,name,...`, a mesh and drafters of the roster, any number; a
fourth number is the batch size, 8 if not given. One JSON object is printed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import jax

from jspec.certify.records import CheckResult
from jspec.certify.roster import ROSTER
from jspec.testing.compile_options import light, xla_flags

DEVICES = 8
_ALL = ",".join(entry.name for entry in ROSTER)
CASES = (f"1,1,1={_ALL}", "1,1,2=oracle-tree", "2,2,2=none,draft-model-tree", "8,1,1=oracle-tree")
FEW = ("2,2,2=oracle-tree",)


def strictly_equal(cases: Sequence[str] = CASES, *, is_light: bool = False) -> CheckResult:
    """Drafters and meshes against plain decoding, token for token, no excuse.

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
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    import jax.numpy as jnp

    from jspec.certify import proof
    from jspec.certify.roster import entry
    from jspec.console.compile_cache import keep_compiled_programs
    from jspec.sharding import make_mesh
    from jspec.testing.models import on_mesh, tiny_target

    keep_compiled_programs()
    sizes = {"n_heads": 8, "n_kv_heads": 8, "head_dim": 4, "vocab_size": 64}
    alone = tiny_target(dtype=jnp.float64, **sizes)
    requests = proof.mixed_requests(alone, 16)
    plain = proof.decode(alone, requests, batch_size=1)
    texts = proof.texts_of(requests, plain)
    problems = {}
    for case in cases:
        mesh_sizes, _, names = case.partition("=")
        data, layer, tensor, *batch = (int(n) for n in mesh_sizes.split(","))
        target = on_mesh(alone, make_mesh(data=data, layer=layer, tensor=tensor))
        for name in names.split(","):
            found = entry(name)
            drafter = found.make(target if found.is_placed else alone, texts)
            if not found.is_placed:
                whole = _on_every_device(drafter.params, target.mesh)
                drafter = dataclasses.replace(drafter, params=whole)
            results = proof.decode(target, requests, drafter, batch_size=(*batch, 8)[0])
            problems[f"{mesh_sizes} {name}"] = proof.unequal(results, plain)
    n_tokens = sum(len(result.tokens) for result in plain)
    print(json.dumps({"n_tokens": n_tokens, "problems": problems}))


def _on_every_device(params, mesh):
    """Every device holds all of the drafter."""
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.device_put(params, NamedSharding(mesh, PartitionSpec()))


if __name__ == "__main__":
    main(sys.argv[1:])
