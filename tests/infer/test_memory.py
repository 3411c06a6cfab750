"""The memory of a run, counted from configs alone, is what is then allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import shipped
from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.ngram import write_ngram
from jspec.checkpoints.number_types import NumberTypes
from jspec.checkpoints.target import Target, abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.config import InferConfig, find_config, read_yaml, resolve
from jspec.console.memory import memory_line, memory_warning
from jspec.drafters import NAMES, LoadedDrafter, load_drafter
from jspec.drafters.falcon.checkpoint import write_checkpoint as write_head
from jspec.infer.command import answering
from jspec.infer.executables import Executables, place_rows
from jspec.infer.memory import Memory, memory_of
from jspec.infer.prefill import prefill
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState
from jspec.law import Mode, Rule
from jspec.models import sar_head
from jspec.models.sar_head import SarConfig
from jspec.sharding import make_mesh
from jspec.testing.models import random_head, tiny_config, tiny_target
from jspec.train.ngram import estimate
from tests.support.diffusion import write_tiny
from tests.support.truncated import write_truncated

CAPACITY, WIDTH = 64, 32
FIELDS = dict(vocab_size=128, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
"""Of a target for all drafters, and of their models."""


def programs_of(target: Target, drafter: LoadedDrafter, rows: int) -> Executables:
    return Executables(
        target=target,
        drafter=drafter,
        rule=Rule.WALK,
        trace=False,
        loop=None,
        batch_size=rows,
        capacity=CAPACITY,
        rounds=1,
    )


def decode_state(target: Target, drafter: LoadedDrafter, rows: int) -> DecodeState:
    """The state after a prompt in every row, as it lies on the mesh."""
    program = programs_of(target, drafter, rows).program(Mode.GREEDY)
    request = Request(tokens=(1, 2), max_new_tokens=1)
    sampling = sampling_of([request] * rows, max_length=CAPACITY, max_stop_ids=1)
    tokens, length = jnp.ones((rows, WIDTH), jnp.int32), jnp.full((rows,), 2, jnp.int32)

    def start(params, tokens, length, sampling) -> DecodeState:
        return place_rows(prefill(params, program, tokens, length, sampling, capacity=CAPACITY))

    with jax.set_mesh(target.mesh):
        run = jax.jit(start)
        return run((target.params, drafter.params), tokens, length, sampling)


def on_one_device(tree) -> int:
    """Bytes that the first device holds, of arrays that are several times in the tree once."""
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    return sum(array.addressable_shards[0].data.nbytes for array in arrays)


def check(target: Target, planned: Target, drafter: str, path, rows: int, **options) -> Memory:
    """Counted without weights, with weights, and as allocated: all the same."""
    loaded = load_drafter(drafter, path, target=target, **options)
    abstract = load_drafter(drafter, path, target=planned, **options)
    sizes = dict(batch_size=rows, capacity=CAPACITY)
    memory = memory_of(planned, abstract, **sizes)
    state = decode_state(target, loaded, rows)
    assert memory == memory_of(target, loaded, **sizes)
    assert memory.weights == on_one_device(target.params)
    assert memory.cache == on_one_device(state.cache)
    assert memory.state == on_one_device(state.drafter)
    assert memory.total == on_one_device((target.params, loaded.params, state.cache, state.drafter))
    return memory


@pytest.mark.parametrize(
    "name, path",
    [
        ("falcon", "demo/falcon"),
        ("diffuspec", "demo/diffusion"),
        ("easyspec", "demo/draft-deep"),
    ],
)
def test_the_demo_takes_what_was_said(name, path):
    target, directory = load_target("demo/target"), shipped("demo/target")
    assert directory is not None
    planned = abstract_target(find_checkpoint(directory), dtype="float32", mesh=target.mesh)
    memory = check(target, planned, name, shipped(path), rows=1)
    assert memory.n_weights == sum(leaf.size for leaf in jax.tree.leaves(target.params))
    assert memory.drafter > 0


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A tiny target, and beside it, by name, whatever drafters need."""
    folder = tmp_path_factory.mktemp("models")
    target = tiny_target(**FIELDS)
    write_checkpoint(folder / "target", target.params, target.model.config)
    write_checkpoint(folder / "draft-model", target.params, target.model.config)
    head = SarConfig(tiny_config(**FIELDS), block_size=2)
    deep = tiny_target(**FIELDS | {"n_layers": 5})
    write_checkpoint(folder / "easyspec", deep.params, deep.model.config)
    write_head(folder / "falcon", random_head(sar_head.build(head)), head)
    counts = np.arange(128, dtype=np.float64)
    for name, is_causal in (("truncated", True), ("truncated-diffusion", False)):
        write_truncated(
            folder / name,
            target,
            counts=counts,
            decoder={"is_causal": is_causal},
            draft_vocab_size=48,
            is_shifted=True,
            mask_token_id=127,
        )
    write_tiny(folder / "diffuspec", "dream")
    texts = [[1, 2, 3, 1, 2, 3, 4], [4, 1, 2, 5]]
    write_ngram(folder / "diffuspec" / "ngram", estimate(texts, order=3, vocab_size=128))
    return folder


OPTIONS = {
    "easyspec": [
        {"plan": plan, "width": 2, "size": 3, "calibration": calibration}
        for plan, calibration in (("A", "mismatch"), ("B", "round"), ("C", "never"))
    ],
    "draft-model": [{}],
    "falcon": [{"tree": "chain-2"}],
    "diffuspec": [
        {"shortest": 2, "longest": 3, "placement": "split"},
        {"shortest": 2, "longest": 3, "ngram": "none", "prefix": "recompute"},
    ],
}


@pytest.mark.parametrize(
    "name, options",
    [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])],
    ids=str,
)
def test_every_drafter_is_counted_on_a_mesh(models, name, options):
    """Of four devices two share a row: each holds its part of the target, and its rows."""
    is_beside = options.get("plan") == "A"
    mesh = make_mesh(data=2, layer=2) if is_beside else make_mesh(data=2, tensor=2)
    target = load_target(models / "target", mesh=mesh)
    planned = abstract_target(find_checkpoint(models / "target"), dtype="float32", mesh=mesh)
    path = models / name if (models / name).is_dir() else None
    memory = check(target, planned, name, path, rows=4, **options)
    assert (memory.tables > 0) == (name == "diffuspec" and "ngram" not in options)
    assert (memory.drafter > 0) == (path is not None)


@pytest.mark.parametrize(
    ("method", "weights", "draft_vocabulary"),
    [
        ("draft-model", None, 0),
        ("draft-model", "int8", 48),
        ("easyspec", None, 48),
        ("easyspec", "int8", 0),
        ("diffuspec", None, 48),
        ("diffuspec", "int8", 48),
    ],
)
def test_what_a_truncated_draft_shares_is_counted_once(models, method, draft_vocabulary, weights):
    """Its own are a layer and a norm, and with a vocabulary of 48 so many rows of the head."""
    mesh = make_mesh(data=2, tensor=2)
    target = load_target(models / "target", mesh=mesh, weights=weights)
    planned = abstract_target(
        find_checkpoint(models / "target"), dtype="float32", mesh=mesh, weights=weights
    )
    path = models / ("truncated-diffusion" if method == "diffuspec" else "truncated")
    options: dict[str, Any] = {
        "draft-model": {"width": 2},
        "easyspec": {"width": 2, "plan": "C"},
        "diffuspec": {"shortest": 2, "longest": 3, "ngram": "none"},
    }[method]
    options["draft_vocabulary"] = draft_vocabulary
    memory = check(target, planned, method, path, rows=4, **options)
    layer = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 16 + 3 * 16
    ids_and_rows = draft_vocabulary * (1 + 16)
    scales = 0 if weights is None else memory.n_drafter - layer - ids_and_rows
    assert memory.n_drafter == layer + ids_and_rows + scales and 0 <= scales < 200


def test_the_ready_config_with_dream_is_known_by_its_names():
    """32,763,876,352 and 7,615,616,512 weights of two bytes, over two devices."""
    config = resolve(InferConfig, [("", read_yaml(find_config("qwen2_5_32b_dream")))])
    assert config.target is not None and config.drafter_path is not None
    mesh = make_mesh(**config.mesh.model_dump())
    planned = abstract_target(KNOWN[config.target], dtype=config.dtype, mesh=mesh)
    drafter = load_drafter(
        config.drafter, config.drafter_path, target=planned, **config.drafter_options
    )
    memory = memory_of(planned, drafter, batch_size=1, capacity=2048)
    assert (memory.n_weights, memory.n_drafter) == (32_763_876_352, 7_615_616_512)
    norms = 5120 * (2 * 64 + 1)
    assert memory.weights == 32_763_876_352 + norms  # norms are on both
    whole = 7_615_616_512 - 3584 * (3 * 28 * 18_944 + 2 * 152_064)
    assert memory.drafter == 7_615_616_512 + whole
    assert memory.total < 45e9


def test_split_weights_are_fewer_on_a_device(models):
    mesh = make_mesh(tensor=2)
    target = abstract_target(find_checkpoint(models / "target"), dtype="float32", mesh=mesh)

    def drafter_bytes(placement: str) -> int:
        drafter = load_drafter(
            "diffuspec", models / "diffuspec", target=target, placement=placement
        )
        return memory_of(target, drafter, batch_size=1, capacity=CAPACITY).drafter

    mlp, vocabulary = 2 * 3 * 32 * 64, 2 * 128 * 32
    assert drafter_bytes("replicated") - drafter_bytes("split") == 4 * (mlp + vocabulary) / 2


def test_weights_and_cache_are_as_counted_by_hand():
    config = tiny_config()
    target = abstract_target(config, dtype="bfloat16", mesh=make_mesh())
    drafter = load_drafter("none", target=target)
    memory = memory_of(target, drafter, batch_size=3, capacity=31)
    per_layer = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48 + 2 * 32
    assert memory.weights == 2 * memory.n_weights == 2 * (2 * 61 * 32 + 32 + 2 * per_layer)
    assert memory.cache == 2 * (2 * 2 * 3 * 2 * 32 * 8)  # 31 tokens and a node
    assert memory.total == memory.weights + memory.cache


def test_the_line_names_every_part_there_is():
    parts = dict(weights=65_527_752_704, cache=2**29, drafter=15_231_233_024, state=10**8)
    memory = Memory(
        n_weights=32_763_876_352,
        n_drafter=7_615_616_512,
        tables=0,
        types=NumberTypes("bfloat16"),
        **parts,
    )
    config = InferConfig()
    line = memory_line(memory, config, 2048, 85 * 10**9)
    assert line == (
        "memory a device: 81.4 GB of 85.0 GB (target 32.76 billion weights in bfloat16 65.5 GB, "
        "its cache of 1 x 2048 tokens 537 MB, drafter 7.62 billion weights 15.2 GB, its state "
        "100 MB), and work space"
    )
    assert "drafter" not in memory_line(
        Memory(
            n_weights=1,
            n_drafter=0,
            weights=4,
            cache=4,
            drafter=0,
            state=0,
            tables=0,
            types=NumberTypes("float32"),
        ),
        config,
        8,
        None,
    )


@pytest.mark.parametrize(
    "part, said",
    [
        ("weights", "the target's weights, 9 kB: use more devices (mesh.tensor)"),
        ("cache", "the target's cache, 9 kB: lower batch_size, max_length or max_new_tokens"),
        ("drafter", "the drafter's weights, 9 kB: use a smaller drafter"),
        ("state", "the drafter's state, 9 kB: lower batch_size"),
        ("tables", "the n-grams, 9 kB: estimate fewer n-grams"),
    ],
)
def test_what_does_not_fit_is_told_with_its_largest_part(part, said):
    parts = dict.fromkeys(("weights", "cache", "drafter", "state", "tables"), 100) | {part: 9000}
    memory = Memory(n_weights=1, n_drafter=1, types=NumberTypes("float32"), **parts)
    warning = memory_warning(memory, 9000)
    assert warning is not None and "\n" not in warning
    assert warning.startswith("9.4 kB a device do not fit 9 kB; the largest part is ")
    assert said in warning
    assert memory_warning(memory, 9400) is None
    assert memory_warning(memory, None) is None


def test_a_run_that_does_not_fit_is_warned_of_once_and_tried(checkpoints, infer, monkeypatch):
    monkeypatch.setattr(answering, "device_memory", lambda: 1000)
    run = infer("--target", checkpoints.chat, "--prompt", "the cat", "--max-new-tokens", "2")
    assert run.code == 0 and run.out
    (line,) = [line for line in run.err.splitlines() if line.startswith("memory a device: ")]
    assert " of 1 kB (target " in line
    (warning,) = [line for line in run.err.splitlines() if line.startswith("warning: ")]
    assert "do not fit 1 kB; the largest part is the target's" in warning


def test_a_drafter_that_does_not_fit_is_refused_before_weights_are_read(
    checkpoints, infer, tmp_path
):
    target = checkpoints.copy("chat", tmp_path)
    (target / "model.safetensors").write_bytes(b"")
    asked = ("--target", target, "--prompt", "hi", "--drafter", "draft-model")
    run = infer(*asked, "--drafter-path", checkpoints.small, "--set", "drafter_options.depth=0")
    assert run.code == 2
    (line,) = run.err.splitlines()
    assert line.startswith("error: draft-model: depth 0")
