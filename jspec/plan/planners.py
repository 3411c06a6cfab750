"""What each method of drafting has to answer: how it is measured, and what it could draft.

A planner is made from a `PlanJob`, whose files it reads at once. `FalconPlanner` fits a head's
tree: a wide tree tells what is kept, and the best tree grows from that. `SmallModelPlanner` chooses
layers per group (N), width (k) and depth (D) of a smaller model; an exact one (`draft-model`) has
groups of one. How passes are divided over a mesh is the drafter's own option `plan` and is taken as
it is: compare plans by planning once for each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from jspec.bench.benchmark import Benchmark
from jspec.bench.summary import counted
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import find_directory
from jspec.console.log import Log
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.drafters.falcon.trees import Tree, chain, find, fingerprint
from jspec.errors import UserError
from jspec.plan.acceptance import (
    PAPER,
    ROUND,
    DraftRound,
    LevelAcceptance,
    LevelPoint,
    TreeAcceptance,
    count,
    estimate,
    read_acceptance,
    rounds_of,
    tokens_by_depth,
    tokens_per_call,
)
from jspec.plan.candidates import (
    Candidate,
    choose,
    default_probe,
    level_candidates,
    tree_candidates,
)
from jspec.plan.costs import RoundCosts
from jspec.plan.settings import PlanJob

FEW_ROUNDS = 300
"""With fewer rounds at a temperature, a warning."""

SIZES, WIDTHS = (1, 2, 4, 8), (1, 4, 12)
"""What is measured of smaller models where nothing else is asked for; the rest lies between."""

Shape = tuple[int, int, int]
"""Layers per group, nodes per level and passes of a draft; of a head the first two are 1."""

GROUPED = "easyspec"
"""The method that has groups of layers."""


def kept_rounds(
    benchmark: Benchmark, label: str, log: Log, *, what: str = "", block_size: int = 1
) -> dict[float, list[DraftRound]]:
    """Decode all prompts at every temperature, and read the rounds out of the traces.

    Args:
      what: is decoded, for progress.
      block_size: a drafter that needs a text of so many tokens decodes plainly until then.

    Raises:
      UserError: no text went on for a round.
    """
    engine = benchmark.engine(label, benchmark.settings.batch_sizes[0], trace=True)
    found = {}
    for t in benchmark.settings.temperatures:
        requests, rounds = benchmark.requests(benchmark.every_prompt, t), []
        said = f"{what}T = {t:g}"
        with log.status(f"{said}: compiling"):
            engine.warm_up(requests)
        with log.progress(len(requests), unit=f"texts, {said}") as progress:
            for piece in engine.run(requests):
                if piece.generation is not None:
                    assert piece.generation.trace is not None
                    n_plain = max(block_size - len(requests[piece.index].tokens), 0)
                    rounds += rounds_of(piece.generation.trace, n_plain=n_plain)
                    progress()
        if not rounds:
            raise UserError(
                f"T = {t:g}: all texts ended with their first token, no round was seen; raise "
                "--max-new-tokens, or give other --prompts"
            )
        log.note(
            f"{said}: {counted(len(requests), 'text')}, {counted(len(rounds), 'round')}, "
            f"{tokens_per_call(rounds):.2f} tokens a call"
        )
        found[t] = rounds
    return found


class FalconPlanner:
    """Fits a head's tree.

    The best tree is written whether it pays or not: without a file the head would draft the
    released tree, slower still.
    """

    needs_acceptance = writes_slow = True

    def __init__(self, job: PlanJob):
        self.settings, self.label, probe = job.settings, job.label, job.settings.probe
        self._given = find(probe).without_gaps() if probe else None
        options = {**job.drafter.drafter_options, "tree": "chain-1"}  # needs no file
        self.drafter = job.drafter.model_copy(update={"drafter_options": options})
        self._kept: dict[float, TreeAcceptance] = {}
        self._n_rounds: dict[float, int] = {}

    def begin(self, benchmark: Benchmark) -> tuple[int, int]:
        """Take the models; returns nodes and depth of the largest tree that may be timed."""
        self._benchmark, self._head = benchmark, benchmark.session.drafters[self.label]
        self._block_size: int = self._head.drafter.block_size  # pyright: ignore[reportAttributeAccessIssue]
        self._probe = self._given or default_probe(self._block_size)
        self._n_passes = -(-self._probe.depth // self._block_size)
        return self.settings.nodes, self._n_passes * self._block_size

    def _load(self, tree: Tree) -> None:
        """The same head, drafting another tree."""
        drafter = dataclasses.replace(self._head.drafter, tree=tree)  # pyright: ignore
        head = dataclasses.replace(self._head, drafter=drafter)
        self._benchmark.session.drafters[self.label] = head

    def measure_acceptance(self, log: Log) -> None:
        probe = self._probe
        self._load(probe)
        kept = kept_rounds(self._benchmark, self.label, log, block_size=self._block_size)
        for t, rounds in kept.items():
            found = self._kept[t] = estimate(count(rounds, probe))
            self._n_rounds[t] = len(rounds)
            log.note(
                f"T = {t:g}: the probe tree yields {tokens_per_call(rounds):.2f} tokens a call, "
                f"{found.tokens_per_call(probe):.2f} by the estimated probabilities"
            )
            if len(rounds) < FEW_ROUNDS:
                log.warning(
                    f"T = {t:g}: {counted(len(rounds), 'round')} say little of unlikely nodes; "
                    "give more --prompts, or raise --max-new-tokens"
                )

    def load_in_turn(self, r: dict[int, float]) -> Iterator[tuple[Shape, str]]:
        """Load drafts to be timed, of 1, 2, ... passes: the best trees if drafting were free."""
        free = self.candidates(RoundCosts(r=r, prime=0.0, further=0.0, overhead=0.0))
        for passes in range(1, self._n_passes + 1):
            best = choose([one for one in free if one.shape["passes"] == passes])
            whole = chain(passes * self._block_size).paths
            self._load(Tree((*best.tree.paths, *whole) if best and best.tree else whole))
            yield (1, 1, passes), f"drafts, passes = {passes}"

    def candidates(self, costs: RoundCosts) -> list[Candidate]:
        weighted = list(zip(self.settings.shares, self._kept.values(), strict=True))
        return tree_candidates(
            weighted, costs, block_size=self._block_size, n_nodes=self.settings.nodes
        )

    def options(self, candidate: Candidate) -> dict[str, Any]:
        """`paths` is all that the drafter reads."""
        tree = candidate.tree
        assert tree is not None
        return {
            "paths": [list(path) for path in tree.paths],
            "fingerprint": fingerprint(tree),
            "nodes": tree.n_nodes,
            "block_size": self._block_size,
        }

    def record(self) -> dict[str, Any]:
        acceptance = {
            t: {
                "weight": share,
                "rounds": self._n_rounds[t],
                "main": [[round(p, 5) for p in ranks] for ranks in one.main],
                "side": [[round(p, 5) for p in ranks] for ranks in one.side],
            }
            for (t, one), share in zip(self._kept.items(), self.settings.shares, strict=True)
        }
        probe = {"nodes": self._probe.n_nodes, "fingerprint": fingerprint(self._probe)}
        return {"acceptance_from": "measured here", "probe": probe, "acceptance": acceptance}


class SmallModelPlanner:
    """Chooses N, width and depth. Where no draft pays it writes nothing."""

    writes_slow = False

    def __init__(self, job: PlanJob):
        settings, path = job.settings, job.drafter.drafter_path
        self.settings, self.label, self.drafter = settings, job.label, job.drafter
        self._mesh = job.config.mesh
        self._acceptance = read_acceptance(settings.acceptance) if settings.acceptance else None
        self.needs_acceptance = self._acceptance is None
        if path is None:
            raise UserError(
                f"drafter {job.label!r} has no weights: give the smaller model that drafts with "
                "--drafter-path DIR or a hub id"
            )
        self._n_layers = find_checkpoint(path, downloads=False).config.n_layers
        if self.needs_acceptance or not settings.costs:
            check_here(job)

    def _able(self, sizes: Sequence[int]) -> list[int]:
        """Layers per group that this model can have; the first and the last layer stay alone."""
        if self.drafter.drafter != GROUPED:
            return [1]
        most, plan = max(self._n_layers - 2, 1), self.drafter.drafter_options.get("plan")
        if plan in [each.value for each in Parallelism if each.layers]:  # a device for each layer
            most = min(most, self._mesh.layer)
        return sorted({min(n, most) for n in sizes})

    def begin(self, benchmark: Benchmark) -> tuple[int, int]:
        settings = self.settings
        self._benchmark, self._deepest = benchmark, max(settings.depths)
        given = settings.model_fields_set
        sizes = self._able(settings.sizes if "sizes" in given else SIZES)
        widths = settings.widths if "widths" in given else WIDTHS
        self._shapes = [(n, k) for k, n in itertools.product(widths, sizes)]
        return max(settings.widths) * self._deepest, self._deepest

    def _load(self, n: int, width: int, depth: int) -> None:
        """Put a drafter of this shape in place of the one before, which is let go of first."""
        session, label = self._benchmark.session, self.label
        session.drafters.pop(label)
        options = {"drafter_options": self._options(n, width, depth)}
        drafter = self.drafter.model_copy(update=options)
        session.drafters[label] = session.models.load_drafter(label, session.target, drafter)

    def measure_acceptance(self, log: Log) -> None:
        """Decode all prompts with the deepest tree of every N and width.

        A tree grows level by level, so the same rounds tell all shallower ones. Tokens are means
        over temperatures.
        """
        settings, points = self.settings, []
        for n, width in self._shapes:
            self._load(n, width, self._deepest)
            what = f"N = {n}, width {width}, "
            rounds = kept_rounds(self._benchmark, self.label, log, what=what)
            each = [tokens_by_depth(some, settings.depths) for some in rounds.values()]
            for depth in sorted(settings.depths):
                tokens = sum(w * one[depth] for w, one in zip(settings.shares, each, strict=True))
                points.append(LevelPoint(n=n, width=width, depth=depth, tokens_per_call=tokens))
        self._acceptance = LevelAcceptance(tuple(points), f"measured here, {len(points)} points")

    def load_in_turn(self, r: dict[int, float]) -> Iterator[tuple[Shape, str]]:
        """Load drafts to be timed: the deepest of every N and width, a shallow one of the first."""
        shallow = min(self.settings.depths)
        shallow = shallow if shallow < self._deepest else 1
        shapes = {(*self._shapes[0], shallow), *((*shape, self._deepest) for shape in self._shapes)}
        for shape in sorted(shapes):
            self._load(*shape)
            yield shape, "N = {}, width {}, depth {}".format(*shape)

    def candidates(self, costs: RoundCosts) -> list[Candidate]:
        settings, known = self.settings, self._acceptance
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
        return {
            "drafter": self.drafter.drafter,
            "drafter_path": self.drafter.drafter_path,
            "drafter_options": self._options(*candidate.shape.values()),
            "mesh": self._mesh.model_dump(),
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


Planner = FalconPlanner | SmallModelPlanner


def check_here(job: PlanJob) -> None:
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
