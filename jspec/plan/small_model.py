"""Planner for drafters that are a smaller model: layers per group (N), width (k) and depth (D).

An exact small model (`draft-model`) has groups of one. How passes are divided over a mesh is the
drafter's own option `plan` and is taken as it is: compare plans by planning once for each.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 3.2: a round is one exact pass, D - 1
passes in groups and one verification. Differs: the paper fixes N, width and depth by hand.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jspec.bench.plan import Loaded
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import find_directory
from jspec.console.log import Log
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.errors import UserError
from jspec.plan.candidates import Candidate
from jspec.plan.costs import RoundCosts
from jspec.plan.levels import (
    PAPER,
    ROUND,
    LevelAcceptance,
    LevelPoint,
    read_acceptance,
    tokens_by_depth,
)
from jspec.plan.measure import RoundTimer, costs_of, kept_rounds
from jspec.plan.settings import PlanJob

SIZES, WIDTHS = (1, 2, 4, 8), (1, 4, 12)
"""What is measured where nothing else is asked for; what lies between is told from it."""

GROUPED = "easyspec"
"""The method that has groups of layers."""


class SmallModelPlanner:
    """Chooses N, width and depth; a `Planner`. Where no draft pays it writes nothing."""

    writes_slow = False

    def __init__(self, job: PlanJob):
        self._job, self.drafter = job, job.drafter
        settings, path = job.settings, job.drafter.drafter_path
        self._acceptance = read_acceptance(settings.acceptance) if settings.acceptance else None
        self.needs_acceptance = self._acceptance is None
        if path is None:
            raise UserError(
                f"drafter {job.label!r} has no weights: give the smaller model that drafts with "
                "--drafter-path DIR or a hub id"
            )
        self._n_layers = find_checkpoint(path, downloads=False).config.n_layers
        if self.needs_acceptance or not settings.costs:
            _check_here(job)

    def _able(self, sizes: Sequence[int]) -> list[int]:
        """Layers per group that this model can have; the first and the last layer stay alone."""
        if self.drafter.drafter != GROUPED:
            return [1]
        most, plan = max(self._n_layers - 2, 1), self.drafter.drafter_options.get("plan")
        if plan in [each.value for each in Parallelism if each.layers]:  # a device for each layer
            most = min(most, self._job.config.mesh.layer)
        return sorted({min(n, most) for n in sizes})

    def begin(self, loaded: Loaded) -> tuple[int, int]:
        settings = self._job.settings
        self._loaded, self._deepest = loaded, max(settings.depths)
        given = settings.model_fields_set
        sizes = self._able(settings.sizes if "sizes" in given else SIZES)
        widths = settings.widths if "widths" in given else WIDTHS
        self._shapes = [(n, k) for k, n in itertools.product(widths, sizes)]
        return max(settings.widths) * self._deepest, self._deepest

    def _load(self, n: int, width: int, depth: int) -> None:
        """Put a drafter of this shape in place of the one before."""
        loaded, label = self._loaded, self._job.label
        loaded.drafters[label] = None
        options = {"drafter_options": self._options(n, width, depth)}
        drafter = self.drafter.model_copy(update=options)
        loaded.drafters[label] = loaded.plan.models.load_drafter(label, loaded.target, drafter)

    def measure_acceptance(self, log: Log) -> None:
        """Decode all prompts with the deepest tree of every N and width.

        A tree grows level by level, so the same rounds tell all shallower ones. Tokens are means
        over temperatures.
        """
        settings, points = self._job.settings, []
        for n, width in self._shapes:
            self._load(n, width, self._deepest)
            what = f"N = {n}, width {width}, "
            rounds = kept_rounds(self._loaded, self._job.label, log, what=what)
            each = [tokens_by_depth(some, settings.depths) for some in rounds.values()]
            for depth in sorted(settings.depths):
                tokens = sum(w * one[depth] for w, one in zip(settings.shares, each, strict=True))
                points.append(LevelPoint(n=n, width=width, depth=depth, tokens_per_call=tokens))
        self._acceptance = LevelAcceptance(tuple(points), f"measured here, {len(points)} points")

    def measure_costs(self, timer: RoundTimer, log: Log) -> RoundCosts:
        """Time the deepest draft of every N and width, and a shallow one of the first of them."""
        r, timed = timer.forwards(), {}
        shallow = min(self._job.settings.depths)
        shallow = shallow if shallow < self._deepest else 1
        cases = {(*self._shapes[0], shallow), *((*shape, self._deepest) for shape in self._shapes)}
        for shape in sorted(cases):
            log.note("timing N = {}, width {}, depth {}".format(*shape))
            self._load(*shape)
            timed[shape] = timer.terms(self._job.label)
        return costs_of(r, timed)

    def candidates(self, costs: RoundCosts) -> list[Candidate]:
        settings, known = self._job.settings, self._acceptance
        assert known is not None
        sizes, widths = self._able(settings.sizes), settings.widths
        found = level_candidates(known, costs, sizes, widths, settings.depths)
        if not found:
            raise UserError(
                f"no tree can be judged: costs are known for up to {costs.most_nodes} nodes, "
                f"acceptance ({known.source}) for N up to {max(p.n for p in known.points)} and "
                f"depths up to {max(p.depth for p in known.points)}; lower --sizes, --widths or "
                "--depths, or measure more"
            )
        return found

    def options(self, candidate: Candidate) -> dict[str, Any]:
        shape = candidate.shape
        return {
            "drafter": self.drafter.drafter,
            "drafter_path": self.drafter.drafter_path,
            "drafter_options": self._options(shape["n"], shape["width"], shape["depth"]),
            "mesh": self._job.config.mesh.model_dump(),
        }

    def _options(self, n: int, width: int, depth: int) -> dict[str, Any]:
        """The drafter's own options with this shape; groups that are listed would win over N."""
        own = {k: v for k, v in self.drafter.drafter_options.items() if k != "groups"}
        grouped = {"size": n, "calibration": ROUND} if self.drafter.drafter == GROUPED else {}
        return own | grouped | {"width": width, "depth": depth}

    def record(self) -> dict[str, Any]:
        assert self._acceptance is not None
        points = [dataclasses.asdict(point) for point in self._acceptance.points]
        return {"acceptance_from": self._acceptance.source, "acceptance": points}


def level_candidates(
    acceptance: LevelAcceptance,
    costs: RoundCosts,
    sizes: Sequence[int],
    widths: Sequence[int],
    depths: Sequence[int],
) -> list[Candidate]:
    """All trees by N, width and depth, as far as acceptance and costs are known."""
    return [
        Candidate(
            shape={"n": n, "width": k, "depth": depth},
            tokens_per_call=acceptance.tokens_per_call(n, k, depth),
            terms=costs.terms(depth, k * depth, n, k),
        )
        for n, k, depth in itertools.product(sorted(sizes), sorted(widths), sorted(depths))
        if k * depth < costs.most_nodes and acceptance.knows(n, depth)
    ]


def _check_here(job: PlanJob) -> None:
    """Refuse, without asking the network, what cannot be measured here."""
    import jax

    give = f"give both --costs FILE and --acceptance FILE (or {PAPER})"
    for name in (job.config.target, job.drafter.drafter_path):
        if name is not None and find_directory(name) is None:
            raise UserError(f"measuring takes weights, and those of {name} are not here; {give}")
    mesh = job.config.mesh
    wanted = mesh.data * mesh.layer * mesh.tensor
    if wanted > jax.device_count():
        raise UserError(
            f"the mesh has {wanted} devices, and {jax.device_count()} can be measured here; {give}"
        )
