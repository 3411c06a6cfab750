"""The planner for EasySpec: hardware, acceptance, all candidates, and the files that tell.

In reading order: `Fit`, what was found; `run`, the whole of it; the file that is written.
"""

from __future__ import annotations

import dataclasses
import json
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from jspec.bench.plan import Loaded, make_plan
from jspec.bench.records import provenance
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import find_directory
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec import measured, report
from jspec.plan.easyspec.acceptance import PAPER, ROUND, Acceptance, as_rows, read_acceptance
from jspec.plan.easyspec.candidates import Candidate, Left, Pair, candidates, choose
from jspec.plan.easyspec.hardware import SHIPPED, Hardware, find_hardware, plain, write_hardware
from jspec.plan.easyspec.picture import save_picture
from jspec.plan.easyspec.probe import measure
from jspec.plan.easyspec.shapes import BYTES, ModelShape
from jspec.plan.job import Job
from jspec.train.files import write_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What was found.

    Attributes:
      best: the candidate that is predicted to be fastest, whether it pays or not.
    """

    pair: Pair
    acceptance: Acceptance
    candidates: tuple[Candidate, ...]
    left: tuple[Left, ...]
    best: Candidate

    @property
    def pays(self) -> bool:
        """Whether it is faster than plain decoding."""
        return self.best.speedup > 1


def run(job: Job) -> int:
    """Predict, choose, write and tell; returns the exit code.

    Raises:
      UserError: found before anything has run, or nothing can be run on these devices.
    """
    log = Log()
    logger = getLogger("jspec")
    logger.addHandler(log)
    try:
        fit = _fit(job, log)
        record = _record(job, fit)
        if fit.pays:
            text = yaml.safe_dump(record, sort_keys=False, default_flow_style=None)
            write_whole(job.out, text)
            log.note(f"the drafter's options are in {job.out}")
        _draw(job, fit, log)
        if job.as_json:
            print(json.dumps(record | {"candidates": report.rows(fit.candidates)}))
        else:
            width = max(Console().width, report.WIDTH)
            report.show(fit, Console(highlight=False, width=width))
        return 0
    finally:
        logger.removeHandler(log)


def _fit(job: Job, log: Log) -> Fit:
    """All that reads no weights first, so that mistakes are told at once."""
    hardware = find_hardware(job.hardware) if job.hardware else None
    acceptance = read_acceptance(job.acceptance) if job.acceptance else None
    target, drafter = _shapes(job)
    if hardware is None:
        _check_devices(job)
    if acceptance is None:
        _check_weights(job)
        acceptance = _measured(job, drafter, log)
    if hardware is None:
        log.note(what := "measuring the devices")
        with log.reminders(what):
            hardware = measure(
                drafter,
                target,
                context=job.settings.context,
                dtype=job.config.dtype,
                repeats=job.settings.repeats,
            )
        file = job.out.with_suffix(".hardware.yaml")
        write_hardware(hardware, file)
        log.note(f"their record is in {file}")
    pair = _pair(job, target, drafter, hardware)
    settings = job.settings
    found, left = candidates(
        pair,
        acceptance,
        plans=[Parallelism(name) for name in settings.plans],
        sizes=settings.sizes,
        widths=settings.widths,
        depths=settings.depths,
    )
    best = choose(found)
    if best is None:
        raise UserError(_nothing(pair, left))
    return Fit(
        pair=pair, acceptance=acceptance, candidates=tuple(found), left=tuple(left), best=best
    )


def _shapes(job: Job) -> tuple[ModelShape, ModelShape]:
    """Of target and drafter."""
    path = job.config.drafters[job.label].drafter_path
    if path is None:
        raise UserError(
            f"drafter {job.label!r} has no weights: give the smaller model that drafts with "
            "--drafter-path DIR or a hub id"
        )
    assert job.config.target is not None
    size = BYTES[job.config.dtype]
    target, drafter = (
        ModelShape(name=found.name, config=found.config, weight_bytes=size)
        for found in (find_checkpoint(n, downloads=False) for n in (job.config.target, path))
    )
    return target, drafter


def _pair(job: Job, target: ModelShape, drafter: ModelShape, hardware: Hardware) -> Pair:
    settings, mesh = job.settings, job.config.mesh
    devices = mesh.layer * mesh.tensor
    if target.config.n_heads % devices:
        raise UserError(
            f"{target.config.n_heads} query heads of the target cannot be split over layer x "
            f"tensor = {devices} devices"
        )
    return Pair(
        target=target,
        drafter=drafter,
        hardware=hardware,
        devices=devices,
        data=mesh.data,
        texts=-(-settings.batch_size // mesh.data),
        context=settings.context,
        room=job.config.max_length or settings.context + settings.max_new_tokens,
    )


def _check_devices(job: Job) -> None:
    """There are as many devices to measure as the mesh has."""
    import jax

    wanted = job.config.mesh.data * job.config.mesh.layer * job.config.mesh.tensor
    if wanted > jax.device_count():
        raise UserError(
            f"the mesh has {wanted} devices, and {jax.device_count()} can be measured here; give "
            f"--hardware FILE, or a record's name: {', '.join(SHIPPED)}"
        )


def _check_weights(job: Job) -> None:
    """Both models are here; the network is not asked."""
    for name in (job.config.target, job.config.drafters[job.label].drafter_path):
        if name is not None and find_directory(name) is None:
            raise UserError(
                f"acceptance is measured with weights, and those of {name} are not here; give "
                f"--acceptance FILE, or --acceptance {PAPER} for the published numbers"
            )


def _measured(job: Job, drafter: ModelShape, log: Log) -> Acceptance:
    points = measured.grid(job.settings, drafter.n_layers)
    bench = job.settings.as_bench(ignore_eos=job.config.ignore_eos)
    plan = make_plan(job.name, bench, job.config, [job.label], job.prompts)
    with log.status(f"loading {plan.models.checkpoint.where}"):
        loaded = Loaded(plan)
    return measured.measure(loaded, job.label, job.settings, points, log)


def _nothing(pair: Pair, left: list[Left]) -> str:
    why = left[0].why if left else "no plan has so many layers side by side"
    return f"no candidate can be run on {pair.devices} devices: plan {left[0].plan.value}: {why}"


def _draw(job: Job, fit: Fit, log: Log) -> None:
    """The picture, where matplotlib is installed."""
    file = job.out.with_suffix(".png")
    try:
        save_picture(fit.candidates, fit.best, _caption(fit), fit.pair.plain, file)
    except ImportError:
        log.note("no picture: matplotlib is not installed; pip install 'jspec-decoding[plot]'")
    else:
        log.note(f"the picture is in {file}")


def _caption(fit: Fit) -> str:
    pair = fit.pair
    devices = f"{pair.devices} x {pair.hardware.name}"
    names = (Path(shape.name).name for shape in (pair.target, pair.drafter))
    return f"{' with '.join(names)} on {devices}, batch {pair.data * pair.texts}, predicted"


def _record(job: Job, fit: Fit) -> dict[str, Any]:
    """The choice as a config takes it, and what it was made from."""
    pair, best = fit.pair, fit.best
    drafter = job.config.drafters[job.label]
    return {
        "drafter": drafter.drafter,
        "drafter_path": drafter.drafter_path,
        "drafter_options": drafter.drafter_options | options(best),
        "mesh": {"data": pair.data, **dataclasses.asdict(best.way.mesh)},
        "pays": fit.pays,
        "predicted": report.row(best),
        "plain_tokens_per_s": pair.plain,
        "left_out": [report.left_row(one) for one in fit.left],
        "hardware": plain(pair.hardware),
        "acceptance_from": fit.acceptance.source,
        "acceptance": as_rows(fit.acceptance.points),
        "settings": {
            "config": job.name,
            "target": job.config.target,
            "dtype": job.config.dtype,
            "room": pair.room,
            **job.settings.of("easyspec"),
        },
        "made_by": provenance(),
    }


def options(chosen: Candidate) -> dict[str, Any]:
    """Of the drafter."""
    way = chosen.way
    return {
        "size": way.size,
        "rule": way.rule,
        "plan": way.plan.value,
        "width": chosen.width,
        "depth": chosen.depth,
        "calibration": ROUND,
    }
