"""Every drafter that could be run, what its round takes and yields, and what cannot be run.

In reading order: `Pair`, what is planned for; `Candidate`; `Left`; `candidates`; `choose`.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 3.2: a round is one exact pass, D - 1
passes in groups and one verification. Differs: the paper fixes N, width and depth by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence

from jspec.drafters.easyspec.loading import RULES
from jspec.models.layer_groups import Groups, split
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec.acceptance import Acceptance
from jspec.plan.easyspec.hardware import Hardware
from jspec.plan.easyspec.memory import memory_of
from jspec.plan.easyspec.passes import Mesh, Work, exact_s, fuzzy_s
from jspec.plan.easyspec.shapes import ModelShape

SIZES = tuple(range(1, 9))
WIDTHS = (1, 4, 8, 12)
DEPTHS = tuple(range(3, 9))


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
        return exact_s(
            self.target, self.hardware.for_target, work, Parallelism.B, Mesh(1, self.devices)
        )

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

    plan: Parallelism
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
    """What is left out, and why.

    Attributes:
      sizes: layers a group, of those that were asked for.
    """

    plan: Parallelism
    mesh: Mesh
    sizes: tuple[int, ...]
    why: str


def groups_of(n_layers: int, size: int, rule: str, plan: Parallelism, mesh: Mesh) -> Groups:
    """As the drafter cuts them: no group has more layers than devices to run them side by side."""
    groups = RULES[rule](n_layers, size)
    return split(groups, mesh.layer) if plan.layers and mesh.layer > 1 else groups


def refusal(pair: Pair, way: Way) -> str | None:
    """Why a drafter cannot be run so; None where it can."""
    heads, devices = pair.drafter.config.n_heads, way.mesh.devices(way.plan, "heads")
    if heads % devices:
        return f"{heads} query heads cannot be split over {devices} devices"
    slots, memory = pair.room * pair.texts, pair.hardware.memory
    held = memory_of(pair.target, pair.drafter, way.plan, way.mesh, way.groups, slots=slots)
    if held.total > memory:
        return f"needs {held} a device, which has {memory / 1e9:.1f} GB"
    return None


def candidates(
    pair: Pair,
    acceptance: Acceptance,
    *,
    plans: Sequence[Parallelism] = tuple(Parallelism),
    sizes: Sequence[int] = SIZES,
    widths: Sequence[int] = WIDTHS,
    depths: Sequence[int] = DEPTHS,
) -> tuple[list[Candidate], list[Left]]:
    """All that can be run, and what cannot.

    On one device all plans are one, which is called C. On several, the exact drafter under tensor
    parallelism (plan B with N = 1) is always there to compare with.
    """
    found, left, plain = [], [], pair.plain
    asked = (
        [Parallelism.C]
        if pair.devices == 1
        else [*plans, *(() if Parallelism.B in plans else (Parallelism.B,))]
    )
    for plan in asked:
        for mesh in _meshes(pair, plan):
            refused: dict[int, str] = {}
            is_asked = plan in plans or pair.devices == 1
            for way in _ways(pair, plan, mesh, sizes if is_asked else (1,)):
                if why := refusal(pair, way):
                    refused.setdefault(way.size, why)
                    continue
                for width in widths:
                    found += _of(pair, acceptance, way, width, depths, plain)
            if refused:
                left.append(Left(plan, mesh, tuple(refused), next(iter(refused.values()))))
    return found, left


def _meshes(pair: Pair, plan: Parallelism) -> list[Mesh]:
    """Layouts that differ for a plan: to those that take both axes together they are one."""
    if plan.layers or plan is Parallelism.B_TENSOR:
        return [mesh for mesh in pair.meshes if mesh.layer > 1]
    return [Mesh(1, pair.devices)]


def _ways(pair: Pair, plan: Parallelism, mesh: Mesh, sizes: Sequence[int]) -> Iterator[Way]:
    """Different ones only; layers run side by side on at least as many devices."""
    seen = set()
    for size in sizes:
        if plan.layers and size > mesh.layer:
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
