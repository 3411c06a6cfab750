"""Where the time of an EasySpec round goes: rounds without some of their parts, beside whole ones.

All are timed in turn, in a loop on the device each, as `experiments.common.round_costs` does. What
a round without a part is quicker is what that part takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from experiments.common.round_costs import round_costs
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter, chain_draft
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.infer.request import Request
from jspec.state import replace

ROUNDS = {
    "whole": {},
    "no draft": {"drafts": False},
    "no calibration": {"calibrates": False},
    "verification": {"drafts": False, "calibrates": False},
    "in groups": {"calibration": Calibration.NEVER},
}
"""What rounds leave out. The last reads two tokens in groups in place of an exact pass."""

REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasySpecInPart(EasySpec):
    """Make drafts of as many nodes without a pass, or leave the cache as it is, or both.

    Attributes:
      drafts: makes the passes of a draft; else the nodes repeat the pending token, for nothing.
      calibrates: makes the pass after verification; else the logits stay as they were.
    """

    drafts: bool = True
    calibrates: bool = True

    def propose(self, params, state, context, randomness, size):
        if self.drafts:
            return super().propose(params, state, context, randomness, size)
        assert not randomness.wants_logprobs
        tokens = jnp.repeat(context.pending[:, None], self.grower.size.n_nodes, axis=1)
        draft = chain_draft(tokens, jnp.ones(tokens.shape, bool))
        nodes = {"parent": jnp.zeros_like(draft.parent), "depth": jnp.minimum(draft.depth, 1)}
        return replace(draft, **nodes, is_acceptable=draft.depth == 0), state

    def commit(self, params, state, context, draft, verdict, output):
        if self.calibrates:
            return super().commit(params, state, context, draft, verdict, output)
        # The compiler is not to see that they are the same each time.
        arrays = jnp.where(context.length[:, None] < 0, 0, state.logits.arrays)
        return replace(state, logits=replace(state.logits, arrays=arrays))


def in_part(loaded: LoadedDrafter, **changes) -> LoadedDrafter:
    """The drafter with other fields of `EasySpecInPart`."""
    drafter = loaded.drafter
    assert isinstance(drafter, EasySpec)
    fields = {field.name: getattr(drafter, field.name) for field in dataclasses.fields(EasySpec)}
    return dataclasses.replace(loaded, drafter=EasySpecInPart(**(fields | changes)))


def round_parts(
    target: Target, loaded: LoadedDrafter, request: Request, capacity: int
) -> dict[str, float]:
    """`ROUNDS` and a forward of the target over as many nodes, in plain rounds; a plain one's s."""
    drafters = {name: in_part(loaded, **changes) for name, changes in ROUNDS.items()}
    costs = round_costs(target, drafters, request, capacity, REPEATS)
    whole = costs["whole"]
    found = {name: costs[name]["round"] for name in ROUNDS}
    return found | {"forward": whole["verify"], "plain_s": whole["plain_s"]}


def shares(found: Mapping[str, float]) -> dict[str, object]:
    """A row of a table: a whole round, and what its parts take of it."""
    whole = found["whole"]
    draft, calibration = whole - found["no draft"], whole - found["no calibration"]
    of_whole = {
        "draft": draft,
        "calibration": calibration,
        "target's forward": found["forward"],
        "acceptance and target's cache": found["verification"] - found["forward"],
        "does not add up": whole - draft - calibration - found["verification"],
        "calibration in groups of two tokens instead": calibration - whole + found["in groups"],
    }
    return {
        "plain round, ms": 1000 * found["plain_s"],
        "round, in plain ones": whole,
        **{name: f"{part / whole:.0%}" for name, part in of_whole.items()},
    }
