"""Compares the law and the target with the reference, which has them once more in NumPy.

In reading order: texts judged token by token, the cached forwards, and the law by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jspec import law
from jspec.certify import proof, reference
from jspec.certify.certificate import CheckResult, NearTie
from jspec.certify.proof import TinyCase
from jspec.infer.replay import BOUNDS
from jspec.infer.request import Request, sampling_of
from jspec.infer.results import Generation, TokenInfo
from jspec.law import Mode, Stream
from jspec.models.config import DecoderConfig
from jspec.testing import drafters as hostile
from jspec.testing.decoding import full_logits, greedy
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings


def judged_by_reference(
    config: DecoderConfig,
    weights: reference.Weights,
    requests: Sequence[Request],
    results: Sequence[Generation],
    rounding: str,
) -> CheckResult:
    """Judge every emitted token by the law, the noise and the target of the reference."""
    problems: list[str] = []
    ties: list[NearTie] = []
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        text, n_prompt = request.tokens + result.tokens, len(request.tokens)
        logits = reference.logits_of(config, weights, text[:-1])[n_prompt - 1 :]
        bound = BOUNDS[rounding] / (request.temperature or 1.0)
        for step, token in enumerate(result.tokens):
            noise = reference.gumbel(
                request.seed, request.sample, n_prompt + step, config.vocab_size
            )
            score = reference.scores_of(logits[step], noise, request)
            pick = int(np.argmax(score))
            gap = float(score[pick] - score[token])
            if token == pick:
                trace = result.trace[step] if result.trace is not None else None
                wrong = _wrong_trace(trace, logits[step], score, request)
            elif gap <= bound:
                ties.append((gap, bound))
                wrong = []
            else:
                wrong = [f"{token}, not {pick} (gap {gap:.2g})"]
            problems += [f"request {i}, token {step}: {line}" for line in wrong]
    n_tokens = sum(len(result.tokens) for result in results)
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems), near_ties=tuple(ties))


def _wrong_trace(
    trace: TokenInfo | None, logits: np.ndarray, score: np.ndarray, request: Request
) -> list[str]:
    """Tell what a trace, if there is one, says wrong of the token that the law picked."""
    if trace is None:
        return []
    problems, pick = [], int(np.argmax(score))
    gap = float(score[pick] - np.delete(score, pick).max())
    logprob = np.log(reference.probs_of(logits, request)[pick])
    if request.temperature > 0 and abs(trace.logprob - logprob) > 1e-3:
        problems.append(f"log-probability {trace.logprob}")
    if np.isfinite(gap) and abs(trace.gap - gap) > 1e-3:
        problems.append(f"gap {trace.gap}, not {gap}")
    return problems


def tiny_texts(case: TinyCase) -> CheckResult:
    """Judge a tree drafter's texts, and the rank and depth that each token is said to have."""
    drafter = hostile.oracle(case.target, case.texts, depth=4, width=3, error_every=0)
    results = proof.decode(case.target, case.requests, drafter, trace=True)
    config, weights = case.target.model.config, reference.weights_in_memory(case.target)
    found = judged_by_reference(config, weights, case.requests, results, case.target.types.rounding)
    problems = list(found.problems)
    for i, (request, result) in enumerate(zip(case.requests, results, strict=True)):
        for step, told in enumerate(result.trace or ()):
            place = len(request.tokens) + step
            if told.rank != (place * 7 % 3 if told.depth else -1):
                problems.append(f"request {i}, token {step}: rank {told.rank}")
    problems += proof.wrong_endings(case.requests, results, proof.MAX_LENGTH)
    return dataclasses.replace(found, problems=tuple(problems))


def forward() -> CheckResult:
    """Compare cached forwards, prefill and one by one, with the whole pass in NumPy."""
    problems, n_tokens = [], 0
    for changes in (
        {"n_kv_heads": 2, "has_qkv_bias": True, "has_mlp_bias": True},
        {"n_kv_heads": 4, "has_qk_norm": True, "windows": (5, None), "has_tied_head": True},
    ):
        target = tiny_target(7, **changes)
        weights = reference.weights_in_memory(target)
        tokens = np.random.default_rng(3).integers(0, target.vocab_size, 40).tolist()
        _, text = greedy(target, tokens, 12)
        whole = reference.logits_of(target.model.config, weights, tokens + text)
        far = float(np.abs(full_logits(target, tokens) - whole[: len(tokens)]).max())
        if not far < 1e-4:
            problems.append(f"{changes}: logits {far:.2g} from the reference")
        own = whole[len(tokens) - 1 : -1]
        best = np.sort(own, axis=1)[:, -2:]
        is_wrong = (np.argmax(own, axis=1) != text) & (best[:, 1] - best[:, 0] >= 1e-4)
        if is_wrong.any():
            problems.append(f"{changes}: {int(is_wrong.sum())} greedy tokens differ")
        n_tokens += len(tokens) + len(text)
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems))


# --- the law -------------------------------------------------------------------------------------


def law_by_its_words(rows: int = 240, vocabulary: int = 97) -> CheckResult:
    """Compare scores, filters and noise of the law on random logits, ties among them."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(rows, vocabulary)).astype(np.float32) * 3
    logits[::5] = np.round(logits[::5])  # equal logits at the edges of filters
    requests = [
        Request(
            tokens=(0,),
            max_new_tokens=1,
            seed=int(rng.integers(0, 2**32)),
            sample=int(rng.integers(0, 2**32)) if i % 2 else 0,
            **proof.SETTINGS[i % len(proof.SETTINGS)],
        )
        for i in range(rows)
    ]
    sampling = sampling_of(requests, max_length=1, max_stop_ids=1)
    places = rng.integers(0, 5000, rows).astype(np.int32)
    ids = jnp.broadcast_to(jnp.arange(vocabulary, dtype=jnp.int32)[None], logits.shape)
    told = _law_of(jnp.asarray(logits), sampling, jnp.asarray(places), ids)
    noise, logprobs, picks = (np.asarray(array) for array in told)
    probs = np.exp(logprobs.astype(np.float64))
    problems = []
    for i, request in enumerate(requests):
        own = reference.gumbel(request.seed, request.sample, int(places[i]), vocabulary)
        if np.abs(noise[i] - own).max() > 1e-5:
            problems.append(f"row {i}: noise {np.abs(noise[i] - own).max():.2g} off")
        wanted = reference.probs_of(logits[i], request)
        if np.abs(probs[i] - wanted).max() > 1e-5 or ((probs[i] > 0) != (wanted > 0)).any():
            problems.append(f"row {i}: distribution is not the words' ({request})")
        score = reference.scores_of(logits[i], own, request)
        second, best = np.sort(score)[-2:]
        if picks[i] != np.argmax(score) and best - second > 1e-4:
            problems.append(f"row {i}: picks {picks[i]}, not {np.argmax(score)}")
    return CheckResult(n_tokens=rows, problems=tuple(problems))


@jax.jit
def _law_of(logits, sampling, places, ids):
    """Noise, log-distribution and picks of every row."""
    noise = law.gumbel(sampling, places, ids, Stream.NOISE)
    scores = law.scores(logits, sampling, noise, Mode.FULL)
    return noise, law.log_distribution(logits, sampling, Mode.FULL), law.pick(scores)


def streams_of_the_noise() -> CheckResult:
    """Each use of a row's randomness draws from its own key, the one the definition names."""
    problems = []
    ids = jnp.arange(16, dtype=jnp.int32)[None]
    sampling, at = settings(1, seed=9, sample=2), jnp.asarray([5], jnp.int32)
    draw = jax.jit(law.gumbel, static_argnames="stream")
    for stream in Stream:
        ours = np.asarray(draw(sampling, at, ids, stream))[0]
        if np.abs(ours - reference.gumbel(9, 2, 5, 16, stream=int(stream))).max() > 1e-5:
            problems.append(f"stream {stream.name.lower()} is not its own")
    if {s.name: int(s) for s in Stream} != dict(NOISE=0, DRAFT=1, ACCEPT=2, RESIDUAL=3):
        problems.append("the streams' numbers have changed: texts of equal seeds change with them")
    return CheckResult(n_tokens=16 * len(Stream), problems=tuple(problems))


def noise_under_rejection() -> CheckResult:
    """Under the rejection rule a drafter must not see the law's noise."""
    randomness = law.Randomness(
        sampling=settings(1, temperature=1.0, seed=9),
        length=jnp.asarray([5], jnp.int32),
        mode=Mode.PLAIN,
        rule=law.Rule.REJECTION,
    )
    own, draft = randomness.noise(0, 16), randomness.draft_noise(0, 16)
    assert own is not None and draft is not None
    same = bool(jnp.any(own == draft))
    problems = ("drafters draw from the law's noise under rejection",) if same else ()
    return CheckResult(n_tokens=16, problems=problems)
