"""E3, run as a program of its own: float64 on simulated devices, printed as one JSON object.

Arguments: `data,layer,tensor=name,name,...`, a mesh and drafters of the roster, any number.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax


def main(cases: list[str]) -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    import jax.numpy as jnp

    from jspec.certify import proof
    from jspec.certify.roster import entry
    from jspec.sharding import make_mesh
    from jspec.testing.models import on_mesh, tiny_target

    sizes = {"n_heads": 8, "n_kv_heads": 8, "head_dim": 4, "vocab_size": 64}
    alone = tiny_target(dtype=jnp.float64, **sizes)
    requests = proof.mixed_requests(alone, 16)
    plain = proof.decode(alone, requests, batch_size=1)
    texts = proof.texts_of(requests, plain)
    problems = {}
    for case in cases:
        mesh_sizes, names = case.split("=")
        data, layer, tensor = (int(n) for n in mesh_sizes.split(","))
        target = on_mesh(alone, make_mesh(data=data, layer=layer, tensor=tensor))
        for name in names.split(","):
            drafter = entry(name).make(alone, texts)
            whole = on_mesh_whole(drafter.params, target.mesh)
            drafter = dataclasses.replace(drafter, params=whole)
            results = proof.decode(target, requests, drafter, batch_size=8)
            problems[f"{mesh_sizes} {name}"] = proof.unequal(results, plain)
    n_tokens = sum(len(result.tokens) for result in plain)
    print(json.dumps({"n_tokens": n_tokens, "problems": problems}))


def on_mesh_whole(params, mesh):
    """Every device holds all of the drafter."""
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.device_put(params, NamedSharding(mesh, PartitionSpec()))


if __name__ == "__main__":
    main(sys.argv[1:])
