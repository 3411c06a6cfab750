"""A DiffuSpec drafter from its directory: what is taken from where, and mistakes in one line."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jspec.aot.hlo import read as instructions_of
from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.ngram import write_ngram
from jspec.checkpoints.target import abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import AdaptiveLength, SurvivalLength
from jspec.drafters.diffuspec.loading import DiffuSpecOptions
from jspec.drafters.diffuspec.options import SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import RECOMPUTE
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.law import Mode, Randomness, Rule
from jspec.models.diffusion import Slots
from jspec.sharding import make_mesh
from jspec.state import Context, Prompt
from jspec.testing.compile_options import light
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings
from jspec.train.ngram import estimate
from tests.support.diffusion import slot_logprobs, write_tiny

TARGET = tiny_target(vocab_size=128, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
SHORT = dict(shortest=2, longest=4)


@pytest.fixture
def directory(tmp_path) -> Path:
    return write_tiny(tmp_path / "dream", "dream")


def load(directory: Path | None, **options) -> tuple[DiffuSpec, dict]:
    loaded = load_drafter("diffuspec", directory, target=TARGET, **SHORT | options)
    assert loaded.name == "diffuspec" and isinstance(loaded.drafter, DiffuSpec)
    return loaded.drafter, loaded.params


def test_a_directory_is_the_model_with_its_mask_and_its_shift(directory, tmp_path):
    drafter, params = load(directory)
    assert drafter.model.config.is_shifted and drafter.model.config.mask_id == 120
    assert drafter.lengths == (2, 3, 4)
    assert values_of(drafter.controller) == values_of(AdaptiveLength(shortest=2, longest=4))
    assert drafter.prefix.windows == (4, 5) and drafter.prefix.refresh_every is None
    assert set(params) == {"model"} and all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)
    )
    assert load(directory, extra_slot=True)[0].prefix.windows == (4, 6)
    llada, _ = load(write_tiny(tmp_path / "llada", "llada"))
    assert not llada.model.config.is_shifted


def values_of(controller) -> dict[str, Any]:
    """The constants of an adaptive length."""
    return {field.name: getattr(controller, field.name) for field in fields(AdaptiveLength)}


def test_constants_are_the_papers_if_not_given(directory):
    drafter, _ = load(directory)
    for name, value in dict(cap=15, mass=0.8, beam=3, weight=0.5, score_temperature=1.0).items():
        assert getattr(drafter.options, name) == value


def test_constants_of_the_adaptive_length_reach_it(directory):
    given: dict[str, Any] = dict(growth=3, smoothing=0.25, tolerance=0.9, counts_bonus=True)
    wanted = AdaptiveLength(shortest=2, longest=4, **given)
    assert values_of(load(directory, **given)[0].controller) == values_of(wanted)


def test_options_reach_the_drafter(directory):
    drafter, _ = load(
        directory,
        n_lengths=2,
        controller="survival",
        costs="1.5, 2",
        prefix="recompute",
        passes=2,
        schedule="llada",
        confidence="entropy",
        shape="tree",
        nodes=9,
        extra_slot=True,
        weight=0.7,
        beam=2,
    )
    assert drafter.controller == SurvivalLength(lengths=(2, 4), costs=(1.5, 2.0), smoothing=0.5)
    assert drafter.prefix == RECOMPUTE and drafter.refinement.passes == 2
    assert drafter.options.shape is Shape.TREE and drafter.options.weight == 0.7
    assert [(size.n_nodes, size.max_depth) for size in drafter.sizes] == [(10, 3), (10, 5)]


def test_an_ngram_model_beside_the_weights_is_the_proxy(directory, tmp_path):
    texts = [[1, 2, 3, 1, 2, 3, 4], [4, 1, 2, 5]]
    beside, other = directory / "ngram", tmp_path / "other"
    for folder, order in ((beside, 2), (other, 3)):
        write_ngram(folder, estimate(texts, order=order, vocab_size=TARGET.vocab_size))
    assert load(directory)[1]["ngram"].order == 2
    assert load(directory, ngram=str(other))[1]["ngram"].order == 3
    assert "ngram" not in load(directory, ngram="none")[1]


def test_without_a_proxy_one_line_says_so_unless_that_is_wanted(directory, caplog):
    for options in (dict(ngram="none"), dict(static_share=0.5)):
        load(directory, **options)
    assert not caplog.messages
    load(directory)
    (said,) = caplog.messages
    assert said.startswith(f"diffuspec: no n-gram proxy at {directory / 'ngram'}, so paths are")
    assert "\n" not in said and "static_share: 0.5" in said and "ngram: none" in said
    caplog.clear()
    planned = abstract_target(TARGET.model.config, dtype="float32", mesh=TARGET.mesh)
    load_drafter("diffuspec", directory, target=planned, **SHORT)
    assert not caplog.messages, "said once, where weights are read"


def test_the_texts_own_ngrams_need_no_table(directory):
    """After 7 came 9, then 3, then 7, the pending token. The model finds these a hundred times less
    likely than others, which a text's share of 0.9 outweighs (by 1153) and one of 0.1 (by 15) not.
    """
    text, likely, said = [7, 9, 3, 7], [8, 6, 4], [9, 3, 7]
    logprobs = np.full((1, 3, 128), -9.0, np.float32)
    logprobs[0, [0, 1, 2], likely] = np.log(0.5)
    logprobs[0, [0, 1, 2], said] = np.log(0.005)
    length = jnp.asarray([len(text)], jnp.int32)
    context = Context(
        tokens=jnp.asarray([[*text, 0]], jnp.int32),
        length=length,
        is_active=length > 0,
        sampling=settings(1),
    )
    asked = Randomness(sampling=context.sampling, length=length, mode=Mode.GREEDY, rule=Rule.WALK)

    def path(**options) -> list[int]:
        drafter, params = load(directory, longest=3, n_lengths=1, **options)
        return drafter.choose(params, jnp.asarray(logprobs), context, asked, 0).token[0].tolist()

    assert path(ngram="none") == path(ngram="none", static_share=0.9) == [7, *likely]
    assert path(ngram="none", static_share=0.1) == [7, *said]


@pytest.mark.parametrize("static_share", [1.0, 0.5])
@pytest.mark.parametrize("ngram", [None, [[1, 2, 3, 1, 2, 3, 4], [4, 1, 2, 5]], [[7], [7]]])
def test_a_target_of_shapes_has_a_drafter_of_shapes(directory, ngram, static_share):
    """The same static drafter, and arrays of the same shapes, with no weight read."""
    if ngram:
        model = estimate(ngram, order=3, vocab_size=TARGET.vocab_size)
        write_ngram(directory / "ngram", model)
    planned = abstract_target(TARGET.model.config, dtype="float32", mesh=TARGET.mesh)
    options = {"static_share": static_share}
    shapes = load_drafter("diffuspec", directory, target=planned, **SHORT | options)
    drafter, params = load(directory, **options)
    assert ("ngram" in params) is (ngram is not None or static_share < 1)
    assert shapes.drafter == drafter
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes.params))
    assert shapes_of(shapes.params) == shapes_of(params)


def shapes_of(params):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)


def test_a_published_model_is_known_without_its_files():
    target = abstract_target(KNOWN["Qwen/Qwen2.5-32B-Instruct"], dtype="bfloat16", mesh=make_mesh())
    dream = load_drafter("diffuspec", "Dream-org/Dream-v0-Instruct-7B", target=target)
    assert isinstance(dream.drafter, DiffuSpec)
    config = dream.drafter.model.config
    assert config.is_shifted and config.mask_id == 151_666
    assert dream.drafter.lengths == (20, 25, 30)
    assert sum(leaf.size for leaf in jax.tree.leaves(dream.params)) == 7_615_616_512
    for path, told in (
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct/config.json: is_shifted must tell"),
        ("nobody/dream", "nobody/dream: no directory here, not in the hub's cache, and not"),
    ):
        with pytest.raises(UserError, match=told):
            load_drafter("diffuspec", path, target=target)
    with pytest.raises(UserError, match="nobody/ngram: no directory here, not in the hub's"):
        load_drafter(
            "diffuspec", "Dream-org/Dream-v0-Instruct-7B", target=target, ngram="nobody/ngram"
        )


def test_large_weights_may_be_split_over_the_targets_devices(directory):
    target = dataclasses.replace(TARGET, mesh=make_mesh(tensor=2))
    split = load_drafter("diffuspec", directory, target=target, **SHORT, placement="split")
    layer = split.params["model"]["layers"][0]
    assert layer["mlp"]["gate"].sharding.spec == PartitionSpec(None, ("layer", "tensor"))
    assert layer["attention"]["q"].sharding.spec == PartitionSpec(None, None)
    whole = load_drafter("diffuspec", directory, target=target, **SHORT)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole.params))
    assert isinstance(whole.drafter, DiffuSpec)
    tokens, length = jnp.asarray([[5, 9, 2, 7]], jnp.int32), jnp.asarray([3], jnp.int32)
    predict = jax.jit(slot_logprobs, static_argnums=(1, 4))
    found, wanted = (
        predict(one.params["model"], whole.drafter.model, tokens, length, Slots(n_masks=3))
        for one in (split, whole)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "mode,options,n_best",
    [(Mode.GREEDY, {}, 5), (Mode.FULL, {}, 5), (Mode.FULL, {"wide": 20}, 20)],
    ids=["greedy", "noise of all", "noise of 20"],
)
def test_of_a_split_vocabulary_each_device_gathers_its_best_only(directory, mode, options, n_best):
    """One gather of the best scores and ids of every slot; nothing is as wide as the vocabulary."""
    mesh, rows, slots = make_mesh(tensor=2), 4, 3
    target = abstract_target(TARGET.model.config, dtype="float32", mesh=mesh)
    options = options | dict(shortest=slots, longest=slots, cap=5, prefix="recompute")
    loaded = load_drafter("diffuspec", directory, target=target, placement="split", **options)

    def propose(params, context):
        asked = Randomness(
            sampling=context.sampling, length=context.length, mode=mode, rule=Rule.WALK
        )
        prompt = Prompt(context=context, features={}, width=8, slots=64)
        state = loaded.drafter.init(params, prompt)
        return loaded.drafter.propose(params, state, context, asked, 0)

    length = jnp.full((rows,), 5, jnp.int32)
    context = Context(
        tokens=jnp.zeros((rows, 28), jnp.int32),
        length=length,
        is_active=length > 0,
        sampling=settings(rows, temperature=1.0),
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(propose, compiler_options=light()).lower(loaded.params, context)
    found = [one for one in instructions_of(lowered.compile().as_text() or "") if one.kind]
    shapes = [(one.kind, tuple(array.dims)) for one in found for array in one.results]
    assert shapes.count(("all-gather", (2, rows, slots, 2 * n_best))) == 1
    assert not [dims for _, dims in shapes if TARGET.vocab_size in dims]


def test_split_weights_draft_as_whole_ones(directory, tmp_path):
    write_checkpoint(tmp_path / "target", TARGET.params, TARGET.model.config)
    request = Request(tokens=(1, 2, 3, 4), max_new_tokens=20)

    def decode(placement: str) -> Generation:
        target = load_target(tmp_path / "target", mesh=make_mesh(tensor=2))
        options = dict(shortest=3, longest=3, placement=placement)
        drafter = load_drafter("diffuspec", directory, target=target, **options)
        return Engine(target, drafter, max_length=64).decode([request])[0]

    split, whole = decode("split"), decode("replicated")
    assert split.tokens == whole.tokens and len(split.tokens) == 20
    assert split.stats.accepted_by_depth == whole.stats.accepted_by_depth


def lengths_of(shortest: int, longest: int, count: int) -> tuple[int, ...]:
    return DiffuSpecOptions(shortest=shortest, longest=longest, n_lengths=count).lengths


def test_lengths_are_spread_evenly():
    assert lengths_of(20, 30, 3) == (20, 25, 30)
    assert lengths_of(3, 8, 9) == (3, 4, 5, 6, 7, 8)
    assert lengths_of(4, 4, 3) == (4,) and lengths_of(2, 8, 1) == (8,)


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(shortest=5), "shortest 5 must be at least 1 and at most longest 4"),
        (dict(n_lengths=0), "n_lengths must be at least 1, got 0"),
        (dict(controller="clever"), "controller must be adaptive or survival, got 'clever'"),
        (dict(costs="1,2"), "costs are for controller survival"),
        (dict(controller="survival", costs="1,x"), "costs must be numbers separated by commas"),
        (dict(controller="survival"), "there must be as many of each"),
        (dict(prefix="warm"), "prefix must be frozen or recompute, got 'warm'"),
        (dict(prefix="recompute", refresh_every=4), "refresh_every is for a frozen prefix"),
        (dict(shape="bush"), "shape must be one of path, beams, tree, got 'bush'"),
        (dict(shape="tree"), "a tree needs n_nodes of at least 1"),
        (dict(nodes=4), "a path has no n_nodes"),
        (dict(eos_rule="never"), "eos_rule must be one of argmax_depth, forced_literal"),
        (dict(passes=0), "at least 1 pass is needed, not 0"),
        (dict(weight=1.5), "weight must be from 0 to 1, not 1.5"),
        (dict(beam=0), "beam must be at least 1, got 0"),
        (dict(placement="halved"), "placement must be replicated or split, got 'halved'"),
    ],
)
def test_mistakes_are_told_in_one_line(directory, options, told):
    with pytest.raises(UserError, match=f"^diffuspec: .*{told}") as error:
        load(directory, **options)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_the_target_is_refused(directory, tmp_path):
    with pytest.raises(UserError, match="diffuspec needs a diffusion model: give its path"):
        load(None)
    extra = write_tiny(tmp_path / "llada", "llada")
    with pytest.raises(UserError, match="only a shifted model predicts a slot more"):
        load(extra, extra_slot=True)
    wide = tmp_path / "wide"
    write_ngram(wide, estimate([[1, 2, 3]], order=2, vocab_size=200))
    with pytest.raises(UserError, match="has 200 ids, the target 128"):
        load(directory, ngram=str(wide))


def test_choices_say_what_is_out_of_range(directory):
    drafter, _ = load(directory)
    wrong: list[dict[str, Any]] = [dict(cap=0), dict(mass=0.0), dict(static_share=2.0)]
    for changes in wrong:
        with pytest.raises(ValueError, match=next(iter(changes))):
            SearchOptions(**changes)
    with pytest.raises(ValueError, match="lengths must ascend"):
        dataclasses.replace(drafter, lengths=(4, 2))
