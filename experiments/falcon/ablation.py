"""Falcon's ablation at the demo's scale: training, tree and block size, beside a draft model.

    python -m experiments.falcon.ablation --out runs/falcon_ablation --seeds 0

In four parts, each of which goes on where it was cut off: heads are trained ({plain shift, CSGD} x
k in {2, 3, 4}, the same data and steps), texts are decoded with each as a chain and as a tree of
--nodes nodes in --passes passes, rounds of every shape are timed beside plain ones, and a table and
a picture are made of them. Tokens a target call do not depend on the machine, the speed does: it is
tau over what a round costs in plain ones, at batch size 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jspec
from experiments.common.ablation import Journal, acceptance, parser_of, requests_of
from experiments.common.tables import table
from jspec.bench.costs import ROUNDS, Costs
from jspec.bench.summary import PLAIN
from jspec.checkpoints.target import Target
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.falcon.trees import Tree
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.provenance import provenance

RECORDS, COSTS, TABLE, PICTURE = "acceptance.jsonl", "costs.json", "table.md", "ablation.png"
ROWS = 8


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, per_corpus=5)
    add = parser.add_argument
    add("--steps", type=int, default=700, help="optimizer steps of every head")
    add("--length", type=int, default=64, help="tokens of a training sequence")
    add("--batch-size", type=int, default=16, help="sequences of a step")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--block-sizes", type=int, nargs="+", default=[2, 3, 4], metavar="K")
    add("--passes", type=int, default=2, help="of the head, which make a draft's depth")
    add("--nodes", type=int, default=12, help="of a tree")
    add("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    return parser


def heads(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int, Path]]:
    """Training, block size and seed of every head, and where it is."""
    for seed, k, training in itertools.product(
        arguments.seeds, arguments.block_sizes, ("csgd", "plain")
    ):
        yield training, k, seed, arguments.out / "heads" / f"{training}-{k}-{seed}"


def train(arguments: argparse.Namespace) -> None:
    """Every head that is not there; one that was begun goes on."""
    for training, k, seed, folder in heads(arguments):
        if (folder / "model" / "config.json").is_file():
            continue
        print(f"training {folder.name}", file=sys.stderr)
        sets = {
            "out": folder,
            "data.folder": arguments.data,
            "steps": arguments.steps,
            "data.length": arguments.length,
            "batch_size": arguments.batch_size,
            "micro_batch_size": arguments.batch_size,
            "optimizer.decay_steps": max(arguments.steps * 2 // 5, 1),
            "optimizer.final_share": 0.02,
            "eval_every": arguments.steps,
            "block_size": k,
            "glancing": "true" if training == "csgd" else "false",
            "seed": seed,
        }
        flags = [flag for key, value in sets.items() for flag in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "jspec.train", "--config", "demo/falcon_short", "--resume"]
        code = subprocess.run([*command, *flags], check=False).returncode
        if code:
            raise UserError(f"the training of {folder.name} ended with {code}; see above")


def comb(depth: int, n_nodes: int) -> Tree:
    """The best chain, and siblings beside it: rank 1 from the first depth on, then rank 2."""
    paths = [(0,) * d for d in range(1, depth + 1)]
    siblings = ((*(0,) * (d - 1), rank) for rank in range(1, n_nodes) for d in range(1, depth + 1))
    return Tree(tuple(paths + list(itertools.islice(siblings, max(n_nodes - depth, 0)))))


def drafters(
    arguments: argparse.Namespace, target: Target
) -> Iterator[tuple[dict[str, Any], LoadedDrafter]]:
    """What a drafter is, and the drafter: all heads twice, the demo's own too, and a draft model of
    as many nodes."""
    shipped = ("demo", 2, 0, Path("demo/falcon"))
    for training, k, seed, folder in (*heads(arguments), shipped):
        for shape in ("chain", "tree"):
            depth = arguments.passes * k
            nodes = depth if shape == "chain" else arguments.nodes
            file = arguments.out / f"tree-{depth}-{nodes}.yaml"
            paths = [list(path) for path in comb(depth, nodes).paths]
            file.write_text(json.dumps({"paths": paths}), encoding="utf-8")
            what = {"drafter": "falcon", "training": training, "k": k, "shape": shape}
            place = folder if training == "demo" else folder / "model"
            loaded = jspec.load_drafter("falcon", place, target=target, tree=str(file))
            yield {**what, "nodes": nodes, "depth": depth, "seed": seed}, loaded
    width = max(arguments.nodes // 4, 1)
    for shape, options in (("chain", {"depth": 4}), ("tree", {"depth": 4, "width": width})):
        loaded = jspec.load_drafter("draft-model", "demo/draft", target=target, **options)
        what = {"drafter": "draft-model", "training": "", "k": 1, "shape": shape, "seed": 0}
        yield {**what, "nodes": 4 * options.get("width", 1), "depth": 4}, loaded


def _requests(arguments: argparse.Namespace, temperature: float) -> list[Request]:
    return requests_of(
        arguments.data,
        per_corpus=arguments.prompts_per_corpus,
        max_new_tokens=arguments.max_new_tokens,
        temperature=temperature,
    )


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for every drafter and temperature; those of an earlier start are kept."""
    target = jspec.load_target("demo/target")
    journal = Journal(arguments.out / RECORDS)
    made = provenance()
    requests = {t: _requests(arguments, t) for t in arguments.temperatures}
    for what, loaded in drafters(arguments, target):
        for temperature in arguments.temperatures:
            if journal.find({**what, "temperature": temperature}):
                continue
            record = {**what, "temperature": temperature, "steps": arguments.steps}
            record |= _acceptance(target, loaded, requests[temperature])
            journal.add({**record, "provenance": made})
            print(f"{_name(record)}, T = {temperature}: {record['tau']:.2f}", file=sys.stderr)
    return journal.records


def _acceptance(target: Target, loaded: LoadedDrafter, requests: Sequence[Request]) -> dict:
    engine = Engine(target, loaded, batch_size=ROWS, max_length=256)
    rows = [answer.stats for answer in engine.decode(requests)]
    return acceptance(
        tokens=[max(row.new_tokens - 1, 0) for row in rows],
        rounds=[row.target_calls for row in rows],
        kept=[row.accepted_by_depth for row in rows],
    )


def time_rounds(arguments: argparse.Namespace) -> dict[str, float]:
    """What a round of every shape costs in plain ones; it does not depend on a head's weights."""
    path = arguments.out / COSTS
    found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    target = jspec.load_target("demo/target")
    plain = Engine(target, jspec.load_drafter("none", target=target), batch_size=1, max_length=512)
    requests = {t: _requests(arguments, t)[:1] for t in arguments.temperatures}
    for what, loaded in drafters(arguments, target):
        keys = {t: _shape_key({**what, "temperature": t}) for t in arguments.temperatures}
        if all(key in found for key in keys.values()):
            continue
        print(f"timing {', '.join(keys.values())}", file=sys.stderr)
        engine = Engine(target, loaded, batch_size=1, max_length=512)
        costs = Costs({PLAIN: plain, "it": engine}, requests, 512, ROUNDS).measure()
        rounds = costs["contestants"]["it"]["temperature"]
        for t, key in keys.items():
            found[key] = rounds[str(t)]["round_s"] / costs["plain_round_s_by_temperature"][str(t)]
        path.write_text(json.dumps(found, indent=1))
    return found


def _shape_key(what: dict[str, Any]) -> str:
    return " ".join(str(what[x]) for x in ("drafter", "k", "shape", "nodes", "temperature"))


# --- table and picture ---------------------------------------------------------------------------


def _name(record: dict) -> str:
    if record["drafter"] == "draft-model":
        return f"draft-model, {record['shape']} of {record['nodes']}"
    training = {"csgd": "CSGD", "plain": "plain shift", "demo": "the demo's"}[record["training"]]
    return f"k = {record['k']}, {training}, {record['shape']} of {record['nodes']}"


def write_table(records: Sequence[dict], costs: dict[str, float], path: Path) -> None:
    """Markdown; tau with and without the target's own token, and alpha as the paper has it."""
    head = ("drafter", "seed", "T", "tau + 1", "95%", "tau", "alpha")
    head += ("plain rounds a round", "speed", "kept at depth 1, 2, ...")
    lines = []
    for r in sorted(records, key=lambda r: (r["temperature"], r["k"], r["shape"], r["training"])):
        accepted = r["tau"] - 1
        low, high = r["interval"]
        depths = " ".join(f"{share:.2f}" for share in r["accepted_by_depth"])
        row = (_name(r), str(r["seed"]), f"{r['temperature']:g}", f"{r['tau']:.2f}")
        more = (f"{low:.2f} to {high:.2f}", f"{accepted:.2f}", f"{100 * accepted / r['tau']:.1f}%")
        cost = costs[_shape_key(r)]
        lines.append((*row, *more, f"{cost:.2f}", f"{r['tau'] / cost:.2f}", depths))
    path.write_text(table(head, lines) + "\n", encoding="utf-8")


def draw(records: Sequence[dict], path: Path) -> None:
    """tau with its interval, a panel a temperature; the first seed."""
    from matplotlib.figure import Figure

    temperatures = sorted({r["temperature"] for r in records})
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
    seed = min(r["seed"] for r in records)
    for panel, temperature in zip(panels, temperatures, strict=True):
        some = [r for r in records if r["temperature"] == temperature and r["seed"] == seed]
        some.sort(key=lambda r: (r["k"], r["shape"], r["training"]), reverse=True)
        for place, r in enumerate(some):
            color = {"csgd": "#1f77b4", "plain": "#9ab8d3"}.get(r["training"], "0.5")
            low, high = r["interval"]
            panel.barh(place, r["tau"], color=color)
            panel.plot([low, high], [place, place], color="black", linewidth=1)
        panel.set_yticks(range(len(some)), [_name(r) for r in some], fontsize=8)
        panel.set(title=f"T = {temperature:g}", xlabel="tokens a target call", xlim=(1, None))
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> int:
    import_transformers_without_torch()
    arguments = make_parser().parse_args()

    def command() -> int:
        arguments.out.mkdir(parents=True, exist_ok=True)
        train(arguments)
        records = measure(arguments)
        write_table(records, time_rounds(arguments), arguments.out / TABLE)
        draw(records, arguments.out / PICTURE)
        print((arguments.out / TABLE).read_text(encoding="utf-8"))
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
