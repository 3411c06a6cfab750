"""Every drafter that could be run, what its round takes and yields, and what cannot be run.

In reading order: `Pair`, what is planned for; `Candidate`; `Left`; `candidates`; `choose`.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 3.2: a round is one exact pass, D - 1
passes in groups and one verification. Differs: the paper fixes N, width and depth by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence

from jspec.models.layer_groups import Groups, aligned, contiguous, split
from jspec.plan.easyspec.acceptance import Acceptance
from jspec.plan.easyspec.hardware import Hardware
from jspec.plan.easyspec.memory import memory_of
from jspec.plan.easyspec.passes import Mesh, Plan, Work, exact_s, fuzzy_s
from jspec.plan.easyspec.shapes import ModelShape

SIZES = tuple(range(1, 9))
WIDTHS = (1, 4, 8, 12)
DEPTHS = tuple(range(3, 9))
DEALT = (Plan.A, Plan.A_PLUS)
"""Plans that deal the layers of a group to devices."""

RULES = {"contiguous": contiguous, "aligned": aligned}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Models, devices and texts.

    Attributes:
      devices: that work on the same rows of the batch.
      data: groups of such devices.
      texts: rows of each of these groups.
      context: tokens before a round.
      room: tokens that a text has room for.
    """

    target: ModelShape
    drafter: ModelShape
    hardware: Hardware
    devices: int = 1
    data: int = 1
    texts: int = 1
    context: int = 0
    room: int = 0

    @property
    def meshes(self) -> list[Mesh]:
        """Ways to lay the devices out; none changes what the target does."""
        some = (n for n in range(1, self.devices + 1) if self.devices % n == 0)
        return [Mesh(layer, self.devices // layer) for layer in some]

    def verify_s(self, nodes: int) -> float:
        """Seconds of one forward of the target over the nodes of a tree, the root included."""
        work = self.work(nodes)
        return exact_s(self.target, self.hardware, work, Plan.B, Mesh(1, self.devices))

    @property
    def plain(self) -> float:
        """Tokens a second of plain decoding."""
        return self.data * self.texts / self.verify_s(1)

    def work(self, tokens: int) -> Work:
        return Work(tokens=tokens, texts=self.texts, context=self.context)


@dataclasses.dataclass(frozen=True)
class Way:
    """How the layers of the drafter are grouped and placed.

    Attributes:
      size: layers a group at most (N in the paper); 1 is the exact drafter.
      rule: how groups are cut.
    """

    plan: Plan
    mesh: Mesh
    size: int
    rule: str
    groups: Groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One drafter and what is predicted of it, in seconds and tokens.

    Attributes:
      tokens_per_call: of a round, the target's own included.
      is_known: whether its acceptance lies among measured ones, not beyond them.
      throughput: tokens a second, of all texts.
      speedup: over plain decoding.
    """

    way: Way
    width: int
    depth: int
    exact_s: float
    fuzzy_s: float
    verify_s: float
    tokens_per_call: float
    is_known: bool
    throughput: float
    speedup: float

    @property
    def draft_s(self) -> float:
        return draft_s(self.exact_s, self.fuzzy_s, self.depth)

    @property
    def round_s(self) -> float:
        return self.draft_s + self.verify_s


def draft_s(exact: float, fuzzy: float, depth: int) -> float:
    """Seconds of drafting in a round: the calibration is the first level's pass."""
    return exact + (depth - 1) * fuzzy


def tokens_a_second(tokens_per_call: float, draft: float, verify: float) -> float:
    """Of one text."""
    return tokens_per_call / (draft + verify)


@dataclasses.dataclass(frozen=True)
class Left:
    """What is left out, and why."""

    plan: Plan
    mesh: Mesh
    why: str


def groups_of(n_layers: int, size: int, rule: str, plan: Plan, mesh: Mesh) -> Groups:
    """As the drafter cuts them: under plans A and A+ no group has more layers than devices."""
    groups = RULES[rule](n_layers, size)
    return split(groups, mesh.layer) if plan in DEALT else groups


def refusal(pair: Pair, plan: Plan, mesh: Mesh) -> str | None:
    """Why a plan cannot be run on these devices; None where it can."""
    drafter, heads, mlp = pair.drafter, mesh.heads_over(plan), mesh.mlp_over(plan)
    if not drafter.splits(heads):
        return f"{drafter.config.n_heads} query heads cannot be split over {heads} devices"
    if drafter.config.mlp_width % mlp:
        return f"an MLP of {drafter.config.mlp_width} cannot be split over {mlp} devices"
    needed = memory_of(
        pair.target, pair.drafter, plan, mesh, room=pair.room, texts=pair.texts
    )  # fmt: skip
    if needed.total > pair.hardware.memory:
        return f"needs {needed} a device, which has {pair.hardware.memory / 1e9:.1f} GB"
    return None


def candidates(
    pair: Pair,
    acceptance: Acceptance,
    *,
    plans: Sequence[Plan] = tuple(Plan),
    sizes: Sequence[int] = SIZES,
    widths: Sequence[int] = WIDTHS,
    depths: Sequence[int] = DEPTHS,
) -> tuple[list[Candidate], list[Left]]:
    """All that can be run, and what cannot."""
    found, left, plain = [], [], pair.plain
    for plan in plans:
        for mesh in _meshes(pair, plan):
            why = refusal(pair, plan, mesh)
            if why:
                left.append(Left(plan, mesh, why))
                continue
            for way in _ways(pair, plan, mesh, sizes):
                for width in widths:
                    found += _of(pair, acceptance, way, width, depths, plain)
    return found, left


def _meshes(pair: Pair, plan: Plan) -> list[Mesh]:
    """Layouts that differ for a plan: to B and C all devices are one axis."""
    return pair.meshes if plan in DEALT else [Mesh(1, pair.devices)]


def _ways(pair: Pair, plan: Plan, mesh: Mesh, sizes: Sequence[int]) -> Iterator[Way]:
    """Different ones only; where layers are dealt to devices, there are at least N of these."""
    seen = set()
    for size in sizes:
        if plan in DEALT and size > mesh.layer:
            continue
        for rule in RULES:
            groups = groups_of(pair.drafter.n_layers, size, rule, plan, mesh)
            if groups not in seen:
                seen.add(groups)
                yield Way(plan, mesh, size, rule, groups)


def _of(
    pair: Pair,
    acceptance: Acceptance,
    way: Way,
    width: int,
    depths: Sequence[int],
    plain: float,
) -> Iterator[Candidate]:
    drafter, hardware, plan, mesh = pair.drafter, pair.hardware, way.plan, way.mesh
    fuzzy = fuzzy_s(drafter, hardware, pair.work(width), plan, mesh, way.groups)
    for depth in depths:
        exact = exact_s(drafter, hardware, pair.work(depth + 1), plan, mesh)
        verify = pair.verify_s(1 + width * depth)
        tokens = acceptance.tokens_per_call(way.size, width, depth)
        a_text = tokens_a_second(tokens, draft_s(exact, fuzzy, depth), verify)
        throughput = pair.data * pair.texts * a_text
        yield Candidate(
            way=way,
            width=width,
            depth=depth,
            exact_s=exact,
            fuzzy_s=fuzzy,
            verify_s=verify,
            tokens_per_call=tokens,
            is_known=acceptance.is_known(way.size, depth),
            throughput=throughput,
            speedup=throughput / plain,
        )


def choose(found: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of equals the first, which has the fewest layers a group and nodes."""
    return max(found, key=lambda one: one.throughput, default=None)


def best_of(found: Sequence[Candidate], key: Callable[[Candidate], Hashable]) -> list[Candidate]:
    """The fastest of all that have the same key, in order of first appearance."""
    fastest: dict[Hashable, Candidate] = {}
    for one in found:
        known = fastest.setdefault(key(one), one)
        fastest[key(one)] = max(known, one, key=lambda c: c.throughput)
    return list(fastest.values())
