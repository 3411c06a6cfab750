"""Coupled Sequential Glancing Distillation: shifts, choice of glances, losses, the objective."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.models import sar_head
from jspec.models.model import forward_text
from jspec.models.sar_head import SarConfig
from jspec.testing.models import tiny_target
from jspec.train import csgd, scores
from jspec.train import parts as parts_module
from jspec.train.csgd import Csgd, Glance
from jspec.train.falcon import initial_params
from jspec.train.scores import with_draft_ids

KEY = jax.random.key(3)


def one_text(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Segments, positions and whether two positions share a text, of one text alone."""
    segments = jnp.zeros((1, length), jnp.int32)
    return segments, jnp.arange(length)[None], csgd.same_text(segments)


def test_shifts_are_those_of_the_worked_table():
    segments, positions, _ = one_text(8)
    feature, has_feature = csgd.shifted(positions, 2, segments, fill=-1)
    token, _ = csgd.shifted(positions, 3, segments, fill=-1)
    assert feature[0].tolist() == [2, 3, 4, 5, 6, 7, -1, -1]
    assert token[0].tolist() == [3, 4, 5, 6, 7, -1, -1, -1]
    assert has_feature[0].tolist() == [True] * 6 + [False] * 2


def test_shifts_stay_in_their_text():
    segments = jnp.asarray([[0, 0, 0, 1, 1, 1, -1, -1]])
    moved, is_there = csgd.shifted(jnp.arange(8)[None], 2, segments, fill=-1)
    assert moved[0].tolist() == [2, -1, -1, 5, -1, -1, -1, -1]
    assert is_there[0].tolist() == [True, False, False, True, False, False, False, False]


@pytest.mark.parametrize(
    "schedule, epoch, share",
    [
        ("code", 0, 0.45),
        ("code", 10, 0.275),
        ("code", 19, 0.1175),
        ("code", 20, 0.10),
        ("paper", 0, 0.4),
        ("paper", 10, 0.2),
        ("paper", 19, 0.02),
        ("paper", 20, 0.0),
    ],
)
def test_share_of_glances(schedule, epoch, share):
    assert csgd.glance_share(epoch, 20, schedule) == pytest.approx(share)


def test_share_falls_in_epochs_whatever_the_steps():
    glance = Glance(epochs=4)
    shares = [float(glance.share(jnp.int32(step), 8)) for step in range(8)]
    expected = [float(csgd.glance_share(step // 2, 4, "code")) for step in range(8)]
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_losses_are_the_golden_values():
    with jax.enable_x64(True):
        n, m = jnp.arange(20.0, dtype=jnp.float64), jnp.arange(12.0, dtype=jnp.float64)
        teacher, drafter = 3 * jnp.sin(n).reshape(1, 4, 5), 3 * jnp.cos(n).reshape(1, 4, 5)
        wanted = 2 * jnp.sin(0.3 * m).reshape(1, 4, 3)
        predicted = 2 * jnp.cos(0.3 * m).reshape(1, 4, 3)
        mask = jnp.asarray([[1.0, 1.0, 0.0, 1.0]], jnp.float64)
        labels = jnp.argmax(teacher, axis=-1)
        of_tokens = csgd.token_distances(drafter, teacher, labels, 0.95)
        losses = csgd.feature_distance(predicted, wanted), *of_tokens
        regression, soft, hard = (float(jnp.sum(x * mask)) / (3 + 1e-5) for x in losses)
    assert hard == pytest.approx(4.643295040, abs=1e-8)
    assert soft == pytest.approx(3.053733107, abs=1e-8)
    assert regression == pytest.approx(1.065033624, abs=1e-8)
    total = regression + 0.1 * (0.9 * soft + 0.1 * hard)
    assert total == pytest.approx(1.386302554, abs=1e-8)


def chosen_runs(chosen) -> list[tuple[int, int]]:
    """(start, length) of every run of neighbours."""
    places = np.flatnonzero(np.asarray(chosen))
    groups = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [(int(g[0]), len(g)) for g in groups if len(g)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.floats(0, 9))
def test_two_a_block_shows_first_rows_only(seed, budget):
    _, positions, same = one_text(24)
    mask = jnp.arange(24)[None] >= 3
    chosen = Glance().choose(
        jax.random.key(seed), mask, jnp.full((1, 24), budget), positions, same, 2
    )[0]
    places = np.flatnonzero(np.asarray(chosen))
    assert len(places) == int(budget)
    assert all(place % 2 == 0 and place >= 3 for place in places)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.sampled_from([3, 4]), budget=st.floats(0, 20))
def test_runs_stay_inside_their_block(seed, k, budget):
    _, positions, same = one_text(48)
    mask = jnp.ones((1, 48), bool)
    chosen = Glance().choose(
        jax.random.key(seed), mask, jnp.full((1, 48), budget), positions, same, k
    )
    runs = chosen_runs(chosen[0])
    assert len(runs) == int(budget) // k
    assert all(start % k == 0 and 1 <= length <= k - 1 for start, length in runs)


def test_runs_have_every_length():
    _, positions, same = one_text(48)
    lengths = set()
    for seed in range(20):
        chosen = Glance().choose(
            jax.random.key(seed),
            jnp.ones((1, 48), bool),
            jnp.full((1, 48), 24.0),
            positions,
            same,
            4,
        )
        lengths |= {length for _, length in chosen_runs(chosen[0])}
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize("k", [2, 3])
def test_masked_stride_takes_every_kth_supervised_position(k):
    _, positions, same = one_text(20)
    mask = jnp.asarray([[i >= 3 and i not in (8, 9) for i in range(20)]])
    supervised = np.flatnonzero(np.asarray(mask[0]))
    expected = supervised[::k] if k == 2 else supervised[::k][:-1]
    chosen = Glance(align="masked_stride")._candidates(mask, positions, same, k)
    assert np.flatnonzero(np.asarray(chosen[0])).tolist() == expected.tolist()


def test_one_a_block_shows_nothing():
    _, positions, same = one_text(8)
    mask = jnp.ones((1, 8), bool)
    assert not Glance().choose(KEY, mask, jnp.full((1, 8), 8.0), positions, same, 1).any()


@pytest.mark.parametrize("vocab_size", [5, 300])
def test_tokens_are_drawn_by_their_probabilities(vocab_size):
    """Within four deviations of 40,000 draws; what has no probability is never drawn."""
    n = 40_000
    logits = np.random.default_rng(0).normal(size=vocab_size) * 2
    logits[3] = -np.inf
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (1, n, vocab_size))
    numbers = jnp.arange(n, dtype=jnp.int32)[None]
    tokens = np.asarray(jax.jit(csgd.drawn)(KEY, numbers, rows))
    assert tokens.shape == (1, n) and tokens.dtype == np.int32
    found = np.bincount(tokens[0], minlength=vocab_size) / n
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    assert len(found) == vocab_size and found[3] == 0
    error = np.abs(found - expected) / np.sqrt(expected * (1 - expected) / n + 1e-12)
    assert error[expected * n > 20].max() < 4


def test_a_row_is_drawn_alike_in_any_company():
    logits = jax.random.normal(jax.random.key(1), (3, 8, 300)) * 3
    numbers = jnp.arange(24, dtype=jnp.int32).reshape(3, 8)
    whole = csgd.drawn(KEY, numbers, logits)
    part = csgd.drawn(KEY, numbers[1:2, 4:], logits[1:2, 4:])
    np.testing.assert_array_equal(part, whole[1:2, 4:])
    assert len(set(np.asarray(whole).reshape(-1))) > 5
    sure = np.full((1, 4, 300), -np.inf, np.float32)
    sure[..., 299] = 0
    assert (csgd.drawn(KEY, numbers[:1, :4], jnp.asarray(sure)) == 299).all()


# --- the objective -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    target = tiny_target()
    decoder = dataclasses.replace(target.model.config, n_layers=1, windows=())
    head = sar_head.build(SarConfig(decoder=decoder, block_size=2))
    params = initial_params(head, jax.random.key(1))
    return target, head, params


def batch_of(tokens, segments=None, weights=None):
    tokens = jnp.asarray(tokens, jnp.int32)
    segments = jnp.zeros_like(tokens) if segments is None else jnp.asarray(segments, jnp.int32)
    same = csgd.same_text(segments)
    rows = jnp.arange(tokens.shape[1])
    positions = jnp.sum(same & (rows[None, None] < rows[None, :, None]), axis=2)
    given_weights = jnp.ones(tokens.shape) if weights is None else jnp.asarray(weights)
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions.astype(jnp.int32),
        "weights": given_weights.astype(jnp.float32) * (segments >= 0).astype(jnp.float32),
    }


def objective(target, head, **fields) -> Csgd:
    return Csgd(head=head, target=target.model, steps=10, **fields)


def first_loss(objective, params, frozen, batch, key):
    return objective.loss(params, frozen, batch, key=key, step=jnp.int32(0), rows_sharding=None)


compiled_loss = jax.jit(first_loss, static_argnames="objective")


def loss_of(objective, params, target, batch, key=KEY, *, is_spied=False):
    """Of the first step. Nothing is compiled where a test listens in."""
    run = first_loss if is_spied else compiled_loss
    return run(objective, params, target.params, batch, key)


def tokens_of(target, shape, seed=0):
    return np.random.default_rng(seed).integers(0, target.vocab_size, shape)


def test_two_packed_texts_count_as_two_sequences(setting):
    target, head, params = setting
    quiet = objective(target, head).for_evaluation()
    a, b = tokens_of(target, (1, 9), 1), tokens_of(target, (1, 6), 2)
    packed = batch_of(np.concatenate([a, b], axis=1), [[0] * 9 + [1] * 6])
    together = loss_of(quiet, params, target, packed)
    apart = [loss_of(quiet, params, target, batch_of(x)) for x in (a, b)]
    hard = together.sums["hard_loss"][0]
    assert float(together.weight) == sum(float(x.weight) for x in apart) == 7 + 4
    # Hard labels are drawn, so they depend on the place in the batch; the rest does not.
    rest = float(together.total - 0.01 * hard)
    expected = sum(float(x.total - 0.01 * x.sums["hard_loss"][0]) for x in apart)
    assert rest == pytest.approx(expected, rel=1e-5)


def test_only_supervised_positions_with_a_teacher_are_learnt(setting):
    target, head, params = setting
    weights = np.zeros((1, 10))
    weights[0, 4:] = 1
    quiet = objective(target, head).for_evaluation()
    found = loss_of(quiet, params, target, batch_of(tokens_of(target, (1, 10)), weights=weights))
    assert float(found.weight) == 4  # positions 4 to 7: the feature of two later is known
    weights[0, 5:] = 0
    lone = loss_of(quiet, params, target, batch_of(tokens_of(target, (1, 10)), weights=weights))
    assert float(lone.weight) == 0  # the only supervised position of a text is skipped


def test_a_head_without_errors_is_shown_nothing(setting, monkeypatch):
    target, head, params = setting
    glancing = objective(target, head, noise=0.0, dropout=0.0)
    batch = batch_of(tokens_of(target, (1, 16)))
    assert float(loss_of(glancing, params, target, batch).sums["shown"][0]) > 0
    original = sar_head.forward_text

    def perfect(params, model, embeddings, features, segments, positions, **options):
        original(params, model, embeddings, features, segments, positions, **options)
        return csgd.shifted(features, model.config.block_size, segments)[0]

    monkeypatch.setattr(sar_head, "forward_text", perfect)
    found = loss_of(glancing, params, target, batch, is_spied=True)
    assert float(found.sums["shown"][0]) == 0
    assert float(found.sums["feature_loss"][0]) == 0


def test_shown_positions_get_the_clean_answer(setting, monkeypatch):
    target, head, params = setting
    passes = []
    original = sar_head.forward_text

    def spy(params, model, embeddings, features, segments, positions, **options):
        passes.append((np.asarray(embeddings), np.asarray(features)))
        return original(params, model, embeddings, features, segments, positions, **options)

    monkeypatch.setattr(sar_head, "forward_text", spy)
    tokens = tokens_of(target, (1, 20))
    found = loss_of(objective(target, head), params, target, batch_of(tokens), is_spied=True)
    (first_tokens, first_features), (second_tokens, second_features) = passes
    is_changed = (first_features != second_features).any(axis=-1)[0]
    assert is_changed.sum() == int(found.sums["shown"][0]) > 0
    quiet = objective(target, head).for_evaluation()
    loss_of(quiet, params, target, batch_of(tokens), is_spied=True)
    clean = passes[2][1]
    embedding = np.asarray(target.params["embedding"])
    for j in range(20):
        if is_changed[j]:
            np.testing.assert_array_equal(second_features[0, j], clean[0, j + 2])
            np.testing.assert_array_equal(second_tokens[0, j], embedding[tokens[0, j + 3]])
        else:
            np.testing.assert_array_equal(second_tokens[0, j], first_tokens[0, j])


@pytest.mark.parametrize("length", [16, 64])
def test_noise_is_narrower_in_longer_texts(setting, length):
    target, head, _ = setting
    _, _, same = one_text(length)
    clean = jnp.zeros((1, length, 8))
    noisy = objective(target, head)._noisy(KEY, clean, same)
    bound = 0.1 * 512 / length
    assert 0.8 * bound < float(jnp.max(jnp.abs(noisy))) <= bound


def test_evaluation_is_without_noise_dropout_and_glances(setting):
    """Only the hard labels are drawn, from the teacher."""
    target, head, params = setting
    batch = batch_of(tokens_of(target, (2, 16)))
    learning = objective(target, head)

    def sums(objective, seed):
        found = loss_of(objective, params, target, batch, key=jax.random.key(seed)).sums
        return {name: float(found[name][0]) for name in ("feature_loss", "soft_loss", "shown")}

    assert sums(learning, 1) != sums(learning, 2)
    quiet = learning.for_evaluation()
    assert sums(quiet, 1) == sums(quiet, 2)
    assert sums(quiet, 1)["shown"] == 0
    noisy = objective(target, head, glance=None, dropout=0.0)
    assert sums(noisy, 1) != sums(noisy, 2)


def test_without_glances_the_passes_are_one(setting, monkeypatch):
    target, head, params = setting
    calls = []
    original = sar_head.forward_text
    monkeypatch.setattr(
        sar_head, "forward_text", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    batch = batch_of(tokens_of(target, (1, 12)))
    loss_of(objective(target, head, glance=None), params, target, batch, is_spied=True)
    assert len(calls) == 1
    loss_of(objective(target, head), params, target, batch, is_spied=True)
    assert len(calls) == 3


def test_gradients_follow_the_head_and_not_the_target(setting):
    target, head, params = setting
    batch = batch_of(tokens_of(target, (2, 12)))

    def total(params, frozen):
        return first_loss(objective(target, head), params, frozen, batch, KEY).total

    ours, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(params, target.params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(ours))
    # Its embedding and head are used as they are; the rest of the target is behind a stop.
    layers = jax.tree.leaves(theirs["layers"])
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in layers)


def test_a_reduced_vocabulary_of_all_tokens_changes_nothing(setting):
    target, head, params = setting
    batch = batch_of(tokens_of(target, (2, 16)))
    everything = with_draft_ids(target.params, jnp.arange(target.vocab_size, dtype=jnp.int32))
    learning = objective(target, head)
    for each in (learning, learning.for_evaluation()):
        whole = compiled_loss(each, params, target.params, batch, KEY)
        found = compiled_loss(each, params, everything, batch, KEY)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole, found)


def test_a_reduced_vocabulary_scores_its_tokens_alone(setting, monkeypatch):
    """In training no logits of others are made; evaluation judges hits by all of them."""
    target, head, params = setting
    ids = np.arange(1, target.vocab_size, 3, dtype=np.int32)
    frozen, tokens = with_draft_ids(target.params, jnp.asarray(ids)), tokens_of(target, (4, 16))
    batch, quiet = batch_of(tokens), objective(target, head, dropout=0.0, noise=0.0)
    asked = dataclasses.replace(quiet, glance=None)
    features, _ = forward_text(
        target.params, target.model, *(batch[name] for name in ("tokens", "segments", "positions"))
    )
    wanted = np.asarray(features)[:, 2:]
    out = []
    original = csgd.feature_distance
    monkeypatch.setattr(
        csgd, "feature_distance", lambda a, b: out.append(np.asarray(a)) or original(a, b)
    )
    heads = []
    whole_head = scores.head
    monkeypatch.setattr(scores, "head", lambda *a: heads.append(1) or whole_head(*a))
    learnt = first_loss(asked, params, frozen, batch, KEY)
    assert not heads
    judged = first_loss(quiet.for_evaluation(), params, frozen, batch, KEY)
    assert heads
    read = np.asarray(target.params["head_weight"])
    ours, theirs = out[0][:, :-2] @ read, wanted @ read
    told = []
    # Positions 0 to 13 have a teacher; in blocks of two, slots 1 and 2 take turns.
    for slot in (1, 2):
        rows = slice(slot - 1, None, 2)
        drafted = ids[ours[:, rows][..., ids].argmax(-1)]
        among = ids[theirs[:, rows][..., ids].argmax(-1)]
        n_among = int((drafted == among).sum())
        n_all = int((drafted == theirs[:, rows].argmax(-1)).sum())
        told.append((n_among, n_all))
        assert [float(x) for x in learnt.sums[f"agreement_{slot}"]] == [n_among, 28]
        assert [float(x) for x in judged.sums[f"agreement_{slot}"]] == [n_all, 28]
    assert sum(all_ for _, all_ in told) < sum(among for among, _ in told)
    for name in ("soft_loss", "hard_loss"):
        np.testing.assert_allclose(learnt.sums[name], judged.sums[name], rtol=1e-5)
    soft = []
    for n in range(4):
        for t in range(14):
            p, q = (x[n, t, ids] / 0.95 for x in (theirs, ours))
            p, q = (x - np.logaddexp.reduce(x) for x in (p, q))
            weights = np.exp(0.95 * p - np.logaddexp.reduce(0.95 * p))
            soft.append((weights * (p - np.logaddexp(q, np.log(csgd.SMALLEST)))).sum())
    np.testing.assert_allclose(learnt.sums["soft_loss"][0], sum(soft), rtol=1e-3)


def test_losses_and_gradients_do_not_depend_on_the_parts(setting, monkeypatch):
    """A part has room for 5 of 12 rows."""
    target, head, params = setting
    batch = batch_of(tokens_of(target, (2, 12)), [[0] * 12, [0] * 7 + [1] * 5])
    learning, rows = objective(target, head), set()
    original = scores.head

    def spy(frozen, model, features):
        rows.add(features.shape[1])
        return original(frozen, model, features)

    def run():
        def total(params):
            found = first_loss(learning, params, target.params, batch, KEY)
            return found.total, found

        return jax.jit(jax.grad(total, has_aux=True))(params)

    monkeypatch.setattr(scores, "head", spy)
    whole = run()
    assert rows == {12}
    rows.clear()
    monkeypatch.setattr(parts_module, "LOGITS_BYTES", 2 * 5 * target.vocab_size * 4)
    cut = run()
    assert rows == {4}  # three parts, as even as they can be
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole, cut)
