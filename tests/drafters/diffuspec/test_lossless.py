"""An untrained diffusion drafter in the engine: the target's own text, with some of it drafted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jspec.certify import proof
from jspec.certify.roster import untrained_diffusion
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import SurvivalLength
from jspec.drafters.diffuspec.options import SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix
from jspec.infer.compiling import compile_counts
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.testing.models import tiny_target

TARGET = tiny_target(vocab_size=11, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
DRAFTER_ALONE = SearchOptions(beam=1, weight=1.0)


def requests(temperature: float = 1.0, count: int = 9) -> list[Request]:
    """Prompts from one token to nine."""
    return [
        Request(
            tokens=tuple((5 * i + 3 * j) % TARGET.vocab_size for j in range(i + 1)),
            max_new_tokens=30,
            temperature=temperature,
            seed=7,
            sample=i,
        )
        for i in range(count)
    ]


def knowing(**options: Any) -> LoadedDrafter:
    """The target itself, as a block diffusion model: slot 1 is what the target says."""
    loaded = untrained_diffusion(
        TARGET, lengths=(3,), is_text_causal=True, has_ngram=False, **options
    )
    assert isinstance(loaded.drafter, DiffuSpec)
    model = loaded.drafter.model
    config = dataclasses.replace(model.config, mask_id=0, n_ids=TARGET.vocab_size)
    drafter = dataclasses.replace(
        loaded.drafter, model=dataclasses.replace(model, config=config), options=DRAFTER_ALONE
    )
    return dataclasses.replace(loaded, drafter=drafter, params={"model": TARGET.params})


def decode(drafter: LoadedDrafter, asked: list[Request], **options: Any) -> list[Generation]:
    return proof.decode(TARGET, asked, drafter, batch_size=3, max_length=48, **options)


def counted(results: list[Generation]) -> list[tuple]:
    return [(r.tokens, r.stats.target_calls, tuple(r.stats.accepted_by_depth)) for r in results]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(prefix=Prefix(windows=(2, 5), refresh_every=3)), id="path"),
        pytest.param(
            dict(options=SearchOptions(shape=Shape.TREE, nodes=9)),
            id="tree",
            marks=pytest.mark.grid,
        ),
        pytest.param(
            dict(is_shifted=False, options=SearchOptions(shape=Shape.BEAMS)),
            id="beams",
            marks=pytest.mark.grid,
        ),
    ],
)
def test_texts_are_those_of_plain_decoding_and_partly_drafted(options):
    drafter = untrained_diffusion(TARGET, lengths=(2, 4), has_ngram=False, **options)
    asked = requests()
    results = decode(drafter, asked)
    replayed = proof.replay_all(TARGET, asked, results)
    assert replayed.problems == ()
    plain = proof.decode(TARGET, asked, batch_size=3, max_length=48)
    differing = sum(a.tokens != b.tokens for a, b in zip(results, plain, strict=True))
    assert differing <= len(replayed.near_ties)
    assert sum(result.stats.draft_tokens_accepted for result in results) > len(results)


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.grid), 1.0])
def test_a_drafter_that_knows_the_target_has_its_first_slot_accepted(temperature):
    """Also where the law is noisy: the drafter ranks with the same noise."""
    asked = [r for r in requests(temperature) if 0 not in r.tokens]
    results = decode(knowing(prefix=Prefix(windows=(4,))), asked)
    rounds = sum(r.stats.target_calls for r in results)
    first = sum(r.stats.accepted_by_depth[0] for r in results)
    zeros = sum(r.tokens.count(0) for r in results)
    last = len(results)  # the last token of a text is never a drafted one's
    assert first >= rounds - last - zeros


@pytest.mark.grid
def test_a_frozen_causal_text_drafts_as_one_read_anew():
    """Keys and values of a causal text are final, so the cache changes nothing at all."""
    asked = requests()
    frozen = decode(knowing(prefix=Prefix(windows=(2, 4))), asked)
    anew = decode(knowing(prefix=RECOMPUTE), asked)
    assert counted(frozen) == counted(anew)


@pytest.mark.grid
def test_a_cache_renewed_every_round_drafts_as_none():
    asked = requests()

    def make(prefix):
        return untrained_diffusion(TARGET, lengths=(3,), prefix=prefix, has_ngram=False)

    renewed = decode(make(Prefix(windows=(4,), refresh_every=1)), asked)
    assert counted(renewed) == counted(decode(make(RECOMPUTE), asked))


def test_lengths_move_over_their_whole_range_and_nothing_is_compiled_again():
    moves = SurvivalLength(lengths=(1, 3, 5), costs=(1.2, 1.6, 2.0), smoothing=0.4)
    drafter = untrained_diffusion(TARGET, lengths=(1, 3, 5), has_ngram=False, controller=moves)
    engine = Engine(TARGET, drafter, batch_size=1, max_length=48)
    asked = requests(count=8)
    list(engine.run(asked[:1]))
    before = compile_counts()
    results = engine.decode(asked[1:])
    spent = compile_counts().since(before)
    assert (spent.traces, spent.lowerings, spent.compilations) == (0, 0, 0)
    drafted = {
        round(result.stats.draft_tokens_proposed / result.stats.target_calls, 2)
        for result in results
    }
    assert min(drafted) < 3 and np.ptp(list(drafted)) > 0.3


@pytest.mark.grid
def test_the_proxy_raises_what_is_accepted():
    """A drafter with noise on its weights, and the n-grams of the text that it should write."""
    asked = requests(0.0)
    plain = proof.decode(TARGET, asked, batch_size=3, max_length=48)
    texts = [[*r.tokens, *p.tokens] for r, p in zip(asked, plain, strict=True)]
    accepted = []
    for has_ngram in (False, True):
        drafter = untrained_diffusion(TARGET, texts, lengths=(4,), has_ngram=has_ngram)
        results = decode(drafter, asked)
        accepted.append(sum(r.stats.draft_tokens_accepted for r in results))
    assert accepted[1] > accepted[0]
