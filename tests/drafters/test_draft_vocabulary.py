"""A reduced draft vocabulary: a drafter of U tokens is one of V that never drafts the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.draft_vocabulary import COUNTS_FILE, head_rows, most_frequent
from jspec.checkpoints.target import abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.lattice import candidates
from jspec.drafters.growth import Grower
from jspec.errors import UserError
from jspec.infer.executables import Executables
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Randomness, Rule
from jspec.ops.linear import Quantised
from jspec.sharding import make_mesh
from jspec.state import Context, Prompt
from jspec.testing.compile_options import jit_light, usual_form
from jspec.testing.models import dequantised, tiny_target, with_weights
from jspec.testing.settings import settings
from tests.support.compiled import makers
from tests.support.truncated import edit_config, write_truncated

V, U, ROWS = 32, 12, 4
SIZES: dict[str, Any] = dict(
    vocab_size=V, n_layers=2, width=16, mlp_width=24, n_heads=4, n_kv_heads=2, head_dim=4
)
COUNTS = np.random.default_rng(0).permutation(V).astype(np.float64)
IDS = most_frequent(COUNTS, U)
METHODS = {
    "draft-model": dict(depth=3, width=2),
    "easyspec": dict(depth=3, width=2, size=2),
    "diffuspec": dict(shortest=3, longest=3, cap=4, mass=2.0, ngram="none"),
}


@pytest.fixture(
    scope="module",
    params=[True, pytest.param(False, marks=pytest.mark.grid)],
    ids=["tied", "untied"],
)
def models(request, tmp_path_factory) -> Path:
    """A target, a draft of it by truncation, and one that reads in both directions."""
    folder = tmp_path_factory.mktemp("models")
    target = tiny_target(**SIZES, has_tied_head=request.param)
    write_checkpoint(folder / "target", target.params, target.model.config)
    for name, decoder, values in (
        ("causal", {}, {}),
        ("both", {"is_causal": False}, {"is_shifted": True, "mask_token_id": V - 1}),
    ):
        write_truncated(
            folder / name, target, 2, counts=COUNTS, decoder=decoder, draft_vocab_size=U, **values
        )
    return folder


def load(models, method: str, target=None, **options):
    target = target or load_target(models / "target")
    directory = models / ("both" if method == "diffuspec" else "causal")
    return load_drafter(method, directory, target=target, **METHODS[method] | options)


MODELS = tuple(METHODS)


@pytest.mark.parametrize("method", MODELS)
def test_as_many_tokens_are_drafted_as_is_said(models, method, tmp_path):
    assert np.asarray(load(models, method).params["ids"]).tolist() == IDS.tolist()
    few = load(models, method, draft_vocabulary=5).params["ids"]
    assert np.asarray(few).tolist() == most_frequent(COUNTS, 5).tolist()
    assert "ids" not in load(models, method, draft_vocabulary=0).params
    silent = shutil.copytree(models, tmp_path / "models")
    edit_config(silent / "causal", draft_vocab_size=None)
    edit_config(silent / "both", draft_vocab_size=None)
    assert "ids" not in load(silent, method).params


@pytest.mark.parametrize("method", MODELS)
def test_the_head_is_the_targets_rows_of_what_is_drafted(models, method):
    target = load_target(models / "target")
    params = load(models, method, target).params
    params = params.get("model", params)
    whole = target.params.get("head_weight")
    whole = target.params["embedding"].T if whole is None else whole
    np.testing.assert_array_equal(params["head_weight"], np.asarray(whole)[:, IDS])
    assert params["embedding"] is target.params["embedding"]


@pytest.mark.parametrize("method", MODELS)
@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_target_of_shapes_has_a_drafter_of_shapes(models, method, weights):
    target = load_target(models / "target", weights=weights)
    planned = abstract_target(
        find_checkpoint(models / "target"), dtype="float32", mesh=make_mesh(), weights=weights
    )
    shapes, loaded = load(models, method, planned), load(models, method, target)
    assert shapes.drafter == loaded.drafter
    of = [jax.tree.map(lambda x: (x.shape, x.dtype), one.params) for one in (shapes, loaded)]
    assert of[0] == of[1]


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_of_a_quantised_head_are_those_of_the_matrix_that_it_stands_for(is_tied):
    target = with_weights(tiny_target(**SIZES, has_tied_head=is_tied), "int8")
    rows = head_rows(target.params, jnp.asarray(IDS))
    assert isinstance(rows, Quantised)
    whole = head_rows(dequantised(target).params, jnp.arange(V))
    np.testing.assert_allclose(rows.dequantised(), np.asarray(whole)[:, IDS], rtol=1e-6)


# --- what is drafted ------------------------------------------------------------------------------


def context_of(**law) -> Context:
    rng = np.random.default_rng(1)
    length = jnp.asarray([5, 9, 3, 12], jnp.int32)
    return Context(
        tokens=jnp.asarray(rng.integers(0, V - 1, (ROWS, 28)), jnp.int32),
        length=length,
        is_active=length > 0,
        sampling=settings(ROWS, sample=np.arange(ROWS), **law),
    )


def asked(context: Context, mode: Mode, rule: Rule = Rule.WALK) -> Randomness:
    return Randomness(sampling=context.sampling, length=context.length, mode=mode, rule=rule)


def first_draft(loaded, mode: Mode, rule: Rule = Rule.WALK, **law):
    context = context_of(**law)
    prompt = Prompt(context=context, features={}, width=16, slots=64)

    def propose(params, prompt):
        state, context = loaded.drafter.init(params, prompt), prompt.context
        return loaded.drafter.propose(params, state, context, asked(context, mode, rule), 0)[0]

    return jax.tree.map(np.asarray, jit_light(propose)(loaded.params, prompt))


CASES = [
    (Mode.GREEDY, dict(temperature=0.0)),
    (Mode.PLAIN, dict(temperature=[0.0, 0.7, 1.0, 1.5])),
    (Mode.FULL, dict(temperature=1.0, top_k=6)),
]


@pytest.mark.parametrize("mode, law", CASES, ids=str)
@pytest.mark.parametrize("method", MODELS)
def test_nothing_else_is_drafted(models, method, mode, law):
    draft = first_draft(load(models, method), mode, **law)
    drafted = draft.token[:, 1:][draft.is_valid[:, 1:]]
    assert len(drafted) > 4 and np.isin(drafted, IDS).all()


@pytest.mark.parametrize("mode, law", CASES[1:2], ids=str)
@pytest.mark.parametrize("method", MODELS)
def test_a_vocabulary_of_all_tokens_drafts_what_none_does(models, method, mode, law):
    every, none = (
        first_draft(load(models, method, draft_vocabulary=size), mode, **law) for size in (V, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, every, none)
    assert every.is_valid[:, 1:].any()


@pytest.mark.parametrize("size", [U, 10], ids=["divided", "whole"])
@pytest.mark.parametrize(
    "method, on_mesh",
    [
        ("draft-model", {}),
        ("easyspec", {"plan": "A"}),
        ("easyspec", {"plan": "B"}),
        ("diffuspec", {"placement": "split"}),
    ],
)
def test_on_a_mesh_the_same_is_drafted(models, method, on_mesh, size):
    """Four devices share 12 tokens of the head, and 10 they do not."""
    mesh, options = make_mesh(layer=2, tensor=2), {"draft_vocabulary": size}
    target = load_target(models / "target", mesh=mesh)
    split = load(models, method, target, **options, **on_mesh)
    params = split.params.get("model", split.params)
    part = params["head_weight"].addressable_shards[0].data.shape[1]
    assert part == (size // 4 if on_mesh and size == U else size)
    if isinstance(split.drafter, DiffuSpec):
        assert split.drafter.vocab_axes == (("layer", "tensor") if size == U else ())
    alone = load(models, method, **options)
    law: dict[str, Any] = dict(temperature=[0.0, 0.7, 1.0, 1.5])
    with jax.set_mesh(mesh):
        ours = first_draft(split, Mode.PLAIN, **law)
    theirs = first_draft(alone, Mode.PLAIN, **law)
    if on_mesh == {"plan": "A"}:  # whose layers run side by side in other groups
        assert np.isin(ours.token[:, 1:], most_frequent(COUNTS, size)).all()
    else:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- what a program does with what is shared ------------------------------------------------------


@pytest.mark.parametrize("size", [0, U])
def test_a_round_makes_no_second_embedding_nor_a_second_head(models, size):
    """Sizes of 32 and 12 tokens that nothing else has; rows are looked up, and products read."""
    target = load_target(models / "target")
    loaded = load(models, "draft-model", target, draft_vocabulary=size)
    programs = Executables(
        target=target,
        drafter=loaded,
        rule=Rule.WALK,
        trace=False,
        loop=None,
        batch_size=1,
        capacity=64,
        rounds=1,
    )
    rows = jax.ShapeDtypeStruct((1, 32), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    asked = [Request(tokens=(0,), max_new_tokens=1)]
    sampling = sampling_of(asked, max_length=64, max_stop_ids=2)
    state = programs.state_shapes(*rows, sampling)
    compiled = programs.lower_chunk(state, Mode.GREEDY).compile(usual_form())
    for n_tokens in {V, size} - {0}:
        assert not makers(compiled, n_tokens * SIZES["width"])


# --- by definition: as one that may draft all tokens, the others of which are impossible ----------


def silenced(logits: np.ndarray) -> np.ndarray:
    """Logits of all tokens by which those that are not drafted are impossible."""
    return np.where(np.isin(np.arange(V), IDS), logits, -np.inf).astype(np.float32)


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("mode, law", CASES, ids=str)
def test_trees_grow_as_if_the_others_were_impossible(mode, law, rule):
    width = 1 if rule is Rule.REJECTION else 3
    grower, context = Grower(vocab_size=V, depth=2, width=width), context_of(**law)
    rng = np.random.default_rng(3)
    levels = [rng.normal(size=(ROWS, n, V)).astype(np.float32) * 2 for n in (1, width)]

    def grown(levels, ids):
        tree = grower.root(context, asked(context, mode, rule), jnp.float32)
        for level, logits in enumerate(levels, 1):
            tree = grower.grow(tree, logits, asked(context, mode, rule), level, ids=ids)
        return tree.draft

    some = jit_light(grown)([one[..., IDS] for one in levels], jnp.asarray(IDS))
    all_of_them = jit_light(grown)([silenced(one) for one in levels], None)
    for name in ("token", "parent", "depth", "is_valid"):
        np.testing.assert_array_equal(getattr(some, name), getattr(all_of_them, name))
    assert np.isin(some.token[:, 1:], IDS).all() and some.is_valid.all()
    assert (some.logprobs is None) is (rule is Rule.WALK)
    if some.logprobs is not None:
        assert some.logprobs.shape == (ROWS, 3, V)
        np.testing.assert_allclose(some.logprobs, all_of_them.logprobs, atol=1e-5)


CHOICES: list[dict[str, Any]] = [
    dict(),
    dict(wide=6),
    dict(shape="beams", beam=2),
    dict(shape="tree", nodes=7),
    dict(eos_rule="forced_literal", shape="beams", mass=0.3),
    dict(static_share=0.3, weight=0.2),
]


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("mode, law", CASES[:2], ids=str)
def test_paths_are_searched_as_if_the_others_were_impossible(models, options, mode, law):
    """Stop ids are one that is drafted, and one that is not."""
    loaded = load(models, "diffuspec", **options)
    drafter = loaded.drafter
    assert isinstance(drafter, DiffuSpec)
    stops = [int(IDS[3]), int(np.setdiff1d(np.arange(V), IDS)[1])]
    context = context_of(stop_ids=stops, **law)
    logprobs = 3 * np.random.default_rng(4).normal(size=(ROWS, 3, V)).astype(np.float32)

    def chosen(params, logprobs):
        shares = jax.nn.log_softmax(logprobs, axis=-1)
        return drafter.choose(params, shares, context, asked(context, mode), 0)

    some = jit_light(chosen)(loaded.params, logprobs[..., IDS])
    others = {name: part for name, part in loaded.params.items() if name != "ids"}
    all_of_them = jit_light(chosen)(others, silenced(logprobs))
    jax.tree.map(np.testing.assert_array_equal, some, all_of_them)
    assert some.is_valid[:, 1:].any()


def test_what_must_always_stay_is_there_only_where_it_is_drafted():
    """Of the stop ids 2 and 5 only 2 is drafted: 5 has no mass, whatever its neighbours have."""
    drafted, always = jnp.asarray([2, 4, 7], jnp.int32), jnp.asarray([[2, 5, -1]], jnp.int32)
    logprobs = jnp.log(jnp.asarray([[[0.1, 0.2, 0.7]]], jnp.float32))
    found = candidates(logprobs, drafted=drafted, cap=1, mass=0.5, always=always)
    is_there = np.isfinite(found.logprobs[0, 0])
    assert np.asarray(found.ids[0, 0])[is_there].tolist() == [7, 2]
    np.testing.assert_allclose(np.exp(found.logprobs[0, 0])[is_there], [0.7, 0.1], rtol=1e-6)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(draft_vocabulary=V + 1), "draft_vocabulary 33: expected 0 or .* the 32 tokens"),
        (dict(draft_vocabulary=-1), "draft_vocabulary must be how many tokens .* got -1"),
        (
            dict(draft_vocabulary=1),
            "the best 2 tokens of a row, and 1 are drafted: give a narrower",
        ),
    ],
)
@pytest.mark.parametrize("method", ["draft-model", "easyspec"])
def test_sizes_out_of_range_are_refused(models, method, options, told):
    with pytest.raises(UserError, match=told) as caught:
        load(models, method, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", MODELS)
def test_a_size_without_counts_is_refused_and_so_is_one_that_is_none(models, method, tmp_path):
    silent = shutil.copytree(models, tmp_path / "models")
    for name in ("causal", "both"):
        (silent / name / COUNTS_FILE).unlink()
    with pytest.raises(UserError, match="draft_vocabulary needs .*counts.*; set it to 0"):
        load(silent, method)
    load(silent, method, draft_vocabulary=0)
    for name in ("causal", "both"):
        edit_config(silent / name, draft_vocab_size="many")
    with pytest.raises(UserError, match="draft_vocab_size must be a number .* got 'many'"):
        load(silent, method)


def test_a_model_of_its_own_vocabulary_drafts_what_it_has(models, tmp_path):
    """Of 24 ids the rest are the target's alone; what it drafts are rows of its own head."""
    small = tiny_target(5, **SIZES | {"vocab_size": 24}, has_tied_head=True)
    write_checkpoint(tmp_path, small.params, small.model.config)
    save_file({"counts": COUNTS}, tmp_path / COUNTS_FILE)
    planned = abstract_target(find_checkpoint(models / "target"), dtype="float32", mesh=make_mesh())
    with pytest.raises(UserError, match="up to the 24 tokens"):
        load_drafter("draft-model", tmp_path, target=planned, draft_vocabulary=25)
    loaded = load_drafter("draft-model", tmp_path, target=planned, draft_vocabulary=7)
    assert loaded.params["head_weight"].shape == (SIZES["width"], 7)
