"""Load an EasySpec drafter from a Hugging Face checkpoint, fitted to a target and its mesh."""

from __future__ import annotations

import dataclasses
import enum

from jax.sharding import Mesh

from jspec.checkpoints.beside import checkpoint_beside, load_beside
from jspec.checkpoints.target import Target
from jspec.drafters.base import Method, named
from jspec.drafters.draft_vocabulary import reduce_model
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import aligned, check_groups, contiguous, parse
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.drafters.growth import GrowthOptions
from jspec.errors import UserError
from jspec.models.model import Groups
from jspec.state import Params


class GroupRule(enum.StrEnum):
    """Name how groups are cut; see `layer_groups`."""

    CONTIGUOUS = "contiguous"
    ALIGNED = "aligned"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasySpecOptions(GrowthOptions):
    """Hold what a config may say of an EasySpec drafter; the tree is as published if not given.

    Attributes:
      size: N, layers of a group at most; 1 drafts exactly.
      rule: how groups are cut: `contiguous`, or `aligned` at multiples of N.
      groups: all of them, in place of `size` and `rule`: `0,1-3,4-7,8`.
      plan: how passes are divided over the mesh: `A` (layers side by side along `layer`, as
        published), `A+`, `B` (heads split, one sum a group), `B-`, `B-tensor` or `C` (every device
        the same); if not given, `B` over several devices and `C` on one. See `Parallelism`.
      calibration: when keys and values are made exact: `never`, `prefill`, `mismatch`, `round`.
    """

    depth: int = 5
    width: int = 12
    size: int = 4
    rule: GroupRule = GroupRule.CONTIGUOUS
    groups: str = ""
    plan: str = ""
    calibration: Calibration = Calibration.ROUND

    def __post_init__(self):
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        parse(self.groups)
        if self.plan:
            named(Parallelism, "plan", self.plan)

    def cut(self, n_layers: int) -> Groups:
        """Cut the layers of a model into groups.

        Raises:
          ValueError: those given by hand are not its layers.
        """
        if self.groups:
            return check_groups(parse(self.groups), n_layers)
        rule = aligned if self.rule is GroupRule.ALIGNED else contiguous
        return rule(n_layers, self.size)

    def parallelism(self, mesh: Mesh) -> Parallelism:
        """Find the plan that is named, or the one that is recommended for the mesh.

        Raises:
          UserError: a plan that this mesh does not have.
        """
        if not self.plan:
            n_devices = mesh.shape["layer"] * mesh.shape["tensor"]
            return Parallelism.B if n_devices > 1 else Parallelism.C
        plan = Parallelism(self.plan)
        if plan.layers and mesh.shape[plan.layers] == 1:
            raise UserError(
                f"easyspec: plan {self.plan} runs layers side by side along the mesh axis "
                f"{plan.layers}, which has one device; give it more (mesh: {plan.layers}=2), or "
                "choose plan B or C"
            )
        return plan


def load(path, target: Target, options: EasySpecOptions) -> tuple[EasySpec, Params]:
    """Load a smaller model of the target's series, in the target's dtype and on its mesh.

    Of an abstract target, its shapes; then one that is only known by its hub id will do.

    Raises:
      UserError: a plan that the mesh does not have, heads that it does not divide, groups that are
        not the model's layers, or another tokenizer than the target's.
    """
    plan = options.parallelism(target.mesh)
    checkpoint = checkpoint_beside(target, path)
    small = load_beside(target, checkpoint, table=plan.table, must_be_causal=True)
    try:
        groups = options.cut(small.model.config.n_layers)
    except ValueError as error:
        raise UserError(f"easyspec: {error}") from None
    model, params, ids = reduce_model(
        small.model,
        small.params,
        checkpoint,
        target,
        options,
        width=options.width,
        table=plan.table,
    )
    decoder = LayerParallelDecoder(model, groups, plan, target.mesh)
    drafter = EasySpec(
        decoder=decoder,
        grower=options.grower(target.vocab_size),
        calibration=options.calibration,
    )
    return drafter, decoder.place(params) | ids


METHOD = Method(
    options=EasySpecOptions,
    load=load,
    needs="a smaller model of the target's series: give its path (drafter_path), a directory or a "
    "hub id, such as meta-llama/Llama-3.1-8B-Instruct for the 70B",
)
