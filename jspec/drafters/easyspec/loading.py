"""An EasySpec drafter from a Hugging Face checkpoint, fitted to a target and its mesh."""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh

from jspec.checkpoints.same_tokenizer import check_same_tokenizer
from jspec.checkpoints.target import Target, load_beside
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import (
    Groups,
    aligned,
    check_groups,
    contiguous,
    parse,
    singles,
)
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.drafters.growth import Grower
from jspec.drafters.options import named
from jspec.errors import UserError

RULES: dict[str, Callable[[int, int], Groups]] = {"contiguous": contiguous, "aligned": aligned}


def load(
    path,
    *,
    target: Target,
    size: int = 4,
    rule: str = "contiguous",
    groups: str = "",
    plan: str = "",
    depth: int = 5,
    width: int = 12,
    score_temperature: float = 1.0,
    calibration: str = "round",
) -> LoadedDrafter:
    """A smaller model of the target's series, in the target's dtype and on its mesh.

    Of an abstract target, its shapes; then one that is only known by its hub id will do.

    Args:
      size: N, layers of a group at most; 1 drafts exactly.
      rule: how groups are cut: `contiguous`, or `aligned` at multiples of N.
      groups: all of them, in place of `size` and `rule`: `0,1-3,4-7,8`.
      plan: how passes are divided over the mesh: `A` (layers side by side along `layer`, as
        published), `A+`, `B` (heads split, one sum a group), `B-`, `B-tensor` or `C` (every device
        the same); if not given, `B` over several devices and `C` on one. See `Parallelism`.
      depth, width: D and k of the tree, `depth` levels of `width` nodes; width 1 is a chain.
      score_temperature: s, what scores are divided by where they are compared across parents.
      calibration: when keys and values are made exact: `never`, `prefill`, `mismatch`, `round`.

    Raises:
      UserError: no path, options out of range, a plan that the mesh does not have, heads that it
        does not divide, or another tokenizer than the target's.
    """
    if path is None:
        raise UserError(
            "easyspec needs a smaller model of the target's series: give its path (drafter_path), "
            "a directory or a hub id, such as meta-llama/Llama-3.1-8B-Instruct for the 70B"
        )
    try:
        chosen = plan_for(plan, target.mesh)
        policy = named(Calibration, "calibration", calibration)
        grower = Grower(
            vocab_size=target.vocab_size,
            depth=depth,
            width=width,
            score_temperature=score_temperature,
        )
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        given = parse(groups)
    except ValueError as error:
        raise UserError(f"easyspec: {error}") from None
    small = load_beside(target, path, table=chosen.table, must_be_causal=True)
    check_same_tokenizer(target, small)
    n_layers = small.model.config.n_layers
    try:
        cut = check_groups(given, n_layers) if given else _cut(rule, n_layers, size)
    except ValueError as error:
        raise UserError(f"easyspec: {error}") from None
    decoder = LayerParallelDecoder(small.model, cut, chosen, target.mesh)
    drafter = EasySpec(decoder=decoder, grower=grower, calibration=policy)
    return LoadedDrafter(name="easyspec", drafter=drafter, params=decoder.place(small.params))


def plan_for(name: str, mesh: Mesh) -> Parallelism:
    """The plan of this name; without a name, the one that is recommended for the mesh.

    Raises:
      ValueError: no such plan, or not on this mesh.
    """
    n_devices = mesh.shape["layer"] * mesh.shape["tensor"]
    if not name:
        return Parallelism.B if n_devices > 1 else Parallelism.C
    plan = named(Parallelism, "plan", name)
    if plan.layers and mesh.shape[plan.layers] == 1:
        raise ValueError(
            f"plan {name} runs layers side by side along the mesh axis {plan.layers}, which has "
            f"one device; give it more (mesh: {plan.layers}=2), or choose plan B or C"
        )
    return plan


def _cut(rule: str, n_layers: int, size: int) -> Groups:
    return singles(n_layers) if size == 1 else RULES[rule](n_layers, size)
