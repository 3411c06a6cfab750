"""The checks on tiny random models: bitwise (E1), replay (E2), and the reference in NumPy.

In reading order: `TinyCase`, what they share, then the checks; each returns what it found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jspec import law
from jspec.certify import proof, reference
from jspec.certify.proof import Replayed
from jspec.certify.records import CheckResult, NearTie
from jspec.certify.roster import entry
from jspec.checkpoints.target import Target
from jspec.drafters import load_drafter
from jspec.infer.replay import BOUNDS
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.law import Mode, Stream
from jspec.models.config import DecoderConfig
from jspec.testing import drafters as hostile
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings

MAX_LENGTH = 80


@dataclasses.dataclass(frozen=True)
class TinyCase:
    """A target, mixed requests and what plain decoding says to them."""

    target: Target
    requests: list[Request]
    plain: list[Generation]
    _padded: dict[tuple[int, int], list[Generation]] = dataclasses.field(default_factory=dict)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        return proof.texts_of(self.requests, self.plain)

    def padded(self, padding: int, batch_size: int) -> list[Generation]:
        """Plain decoding with rows of nothing beside its own, as many as a chain has."""
        key = (padding, batch_size)
        if key not in self._padded:
            drafter = load_drafter("none", target=self.target, padding=padding)
            self._padded[key] = proof.decode(
                self.target, self.requests, drafter, batch_size=batch_size, trace=True
            )
        return self._padded[key]


def make_case(count: int = 24, batch_size: int = 1) -> TinyCase:
    target = tiny_target()
    requests = proof.mixed_requests(target, count)
    return TinyCase(target, requests, proof.decode(target, requests, batch_size=batch_size))


# --- E1 and E2 -----------------------------------------------------------------------------------


def bitwise(case: TinyCase, name: str, batch_size: int) -> CheckResult:
    """E1: a chain against plain decoding that is padded to the same rows, bit for bit.

    A chain of several sizes has other rows from round to round; it is judged by replay instead.
    """
    drafter = entry(name).make(case.target, case.texts)
    sizes = drafter.drafter.sizes
    if len(sizes) != 1:
        return replayed(case, name, batch_size)
    plain = case.padded(sizes[0].max_depth, batch_size)
    ours = proof.decode(case.target, case.requests, drafter, batch_size=batch_size, trace=True)
    problems = proof.unequal(ours, plain)
    if not all(r.trace is not None and len(r.trace) == len(r.tokens) for r in ours):
        problems.append("tokens without a trace")
    for i, (request, result) in enumerate(zip(case.requests, ours, strict=True)):
        ended = proof.ending_problems(request, result, MAX_LENGTH)
        problems += [f"request {i}: {line}" for line in ended]
    return CheckResult(n_tokens=sum(len(r.tokens) for r in ours), problems=tuple(problems))


def replayed(case: TinyCase, name: str, batch_size: int, count: int | None = None) -> CheckResult:
    """E2: a drafter of the roster, all settings mixed, judged by replay."""
    drafter = entry(name).make(case.target, case.texts)
    requests, plain = case.requests[:count], case.plain[:count]
    results = proof.decode(case.target, requests, drafter, batch_size=batch_size)
    found = proof.replay_all(case.target, requests, results, max_length=MAX_LENGTH)
    return compared(found, results, plain)


def compared(
    found: Replayed,
    results: Sequence[Generation],
    plain: Sequence[Generation],
    n_plain_ties: int = 0,
) -> CheckResult:
    """What a replay found, and whether texts part from plain decoding's more often than ties do."""
    differing = sum(a.tokens != b.tokens for a, b in zip(results, plain, strict=True))
    problems = list(found.problems)
    if differing > len(found.near_ties) + n_plain_ties:
        problems.append(f"{differing} texts differ from plain, with fewer near-ties")
    emitted = sum(r.stats.new_tokens - 1 for r in results)
    calls = max(sum(r.stats.target_calls for r in results), 1)
    same = len(results) - differing
    return CheckResult(
        n_tokens=found.n_tokens,
        problems=tuple(problems),
        near_ties=found.near_ties,
        note=f"{same} of {len(results)} texts equal plain's; {emitted / calls:.2f} tokens a call",
    )


def texts_that_fill_the_cache(case: TinyCase) -> CheckResult:
    """Texts end at the longest length, and nowhere else, whatever was drafted beyond it."""
    tight = [dataclasses.replace(r, max_new_tokens=100, stop_ids=()) for r in case.requests[:6]]
    drafter = entry("oracle-tree").make(case.target, case.texts)
    results = proof.decode(case.target, tight, drafter, max_length=64, batch_size=8)
    found = proof.replay_all(case.target, tight, results, max_length=64)
    return CheckResult(n_tokens=found.n_tokens, problems=found.problems, near_ties=found.near_ties)


# --- against the reference -----------------------------------------------------------------------


def judged_by_reference(
    config: DecoderConfig,
    weights: reference.Weights,
    requests: Sequence[Request],
    results: Sequence[Generation],
    dtype: str,
) -> CheckResult:
    """Every emitted token against the law, the noise and the target written once more in NumPy."""
    problems: list[str] = []
    ties: list[NearTie] = []
    n_tokens = 0
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        text = request.tokens + result.tokens
        logits = reference.logits_of(config, weights, text[:-1])[len(request.tokens) - 1 :]
        bound = BOUNDS[dtype] / (request.temperature or 1.0)
        for step, token in enumerate(result.tokens):
            n_tokens += 1
            noise = reference.gumbel(
                request.seed, request.sample, len(request.tokens) + step, config.vocab_size
            )
            score = reference.scores_of(logits[step], noise, request)
            pick = int(np.argmax(score))
            gap = float(score[pick] - score[token])
            if token != pick and gap <= bound:
                ties.append((gap, bound))
            elif token != pick:
                problems.append(f"request {i}, token {step}: {token}, not {pick} (gap {gap:.2g})")
            elif result.trace is not None:
                told = result.trace[step]
                rest = np.delete(score, pick)
                told_gap = float(score[pick] - rest.max())
                logprob = np.log(reference.probs_of(logits[step], request)[pick])
                if request.temperature > 0 and abs(told.logprob - logprob) > 1e-3:
                    problems.append(f"request {i}, token {step}: log-probability {told.logprob}")
                if np.isfinite(told_gap) and abs(told.gap - told_gap) > 1e-3:
                    problems.append(f"request {i}, token {step}: gap {told.gap}, not {told_gap}")
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems), near_ties=tuple(ties))


def judge_tree_by_reference(case: TinyCase, count: int | None = None) -> CheckResult:
    """A tree drafter's texts, with the rank and depth that each token is said to come from."""
    requests = case.requests[:count]
    drafter = hostile.oracle(
        case.texts, vocab_size=case.target.vocab_size, depth=4, width=3, error_every=0
    )
    results = proof.decode(case.target, requests, drafter, trace=True)
    found = judged_by_reference(
        case.target.model.config,
        reference.weights_in_memory(case.target),
        requests,
        results,
        case.target.dtype,
    )
    problems = list(found.problems)
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        for step, told in enumerate(result.trace or ()):
            place = len(request.tokens) + step
            if told.rank != (place * 7 % 3 if told.depth else -1):
                problems.append(f"request {i}, token {step}: rank {told.rank}")
        problems += proof.ending_problems(request, result, MAX_LENGTH)
    return dataclasses.replace(found, problems=tuple(problems))


def forward_equals_reference() -> CheckResult:
    """Cached forwards, prefill and one by one, against the whole pass in NumPy."""
    from jspec.testing.decoding import full_logits, greedy

    problems, n_tokens = [], 0
    for changes in (
        {"n_kv_heads": 2, "has_qkv_bias": True, "has_mlp_bias": True},
        {"n_kv_heads": 4, "has_qk_norm": True, "windows": (5, None), "has_tied_head": True},
    ):
        target = tiny_target(7, **changes)
        weights = reference.weights_in_memory(target)
        tokens = np.random.default_rng(3).integers(0, target.vocab_size, 40).tolist()
        wanted = reference.logits_of(target.model.config, weights, tokens)
        far = float(np.abs(full_logits(target, tokens) - wanted).max())
        if not far < 1e-4:
            problems.append(f"{changes or 'plain'}: logits {far:.2g} from the reference")
        _, text = greedy(target, tokens, 12)
        whole = reference.logits_of(target.model.config, weights, tokens + text)
        ties = np.sort(whole, axis=1)[:, -1] - np.sort(whole, axis=1)[:, -2] < 1e-4
        picks = np.argmax(whole, axis=1)[len(tokens) - 1 : -1]
        is_wrong = (picks != text) & ~ties[len(tokens) - 1 : -1]
        if is_wrong.any():
            problems.append(f"{changes or 'plain'}: {int(is_wrong.sum())} greedy tokens differ")
        n_tokens += len(tokens) + len(text)
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems))


def law_by_its_words(rows: int = 240, vocabulary: int = 97) -> CheckResult:
    """Scores, filters and noise of the law on random logits, ties among them, row by row."""
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
    fields = ("temperature", "top_k", "top_p", "min_p", "seed", "sample")
    given = {name: [getattr(r, name) for r in requests] for name in fields}
    sampling = settings(rows, **given)
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
        best = np.sort(reference.scores_of(logits[i], own, request))[-2:]
        pick = int(np.argmax(reference.scores_of(logits[i], own, request)))
        if picks[i] != pick and best[1] - best[0] > 1e-4:
            problems.append(f"row {i}: picks {picks[i]}, not {pick}")
    return CheckResult(n_tokens=rows, problems=tuple(problems))


@jax.jit
def _law_of(logits, sampling, places, ids):
    """Noise, log-distribution and picks of every row."""
    noise = law.gumbel(sampling, places, ids, Stream.NOISE)
    scores = law.scores(logits, sampling, noise, Mode.FULL)
    return noise, law.log_distribution(logits, sampling, Mode.FULL), law.pick(scores)


def streams_are_apart() -> CheckResult:
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


def rejection_draws_apart() -> CheckResult:
    """Under the rejection rule a drafter must not see the law's noise."""
    sampling = settings(1, temperature=1.0, seed=9)
    randomness = law.Randomness(
        sampling=sampling,
        length=jnp.asarray([5], jnp.int32),
        mode=Mode.PLAIN,
        rule=law.Rule.REJECTION,
    )
    own, draft = randomness.noise(0, 16), randomness.draft_noise(0, 16)
    assert own is not None and draft is not None
    same = bool(jnp.any(own == draft))
    problems = ("drafters draw from the law's noise under rejection",) if same else ()
    return CheckResult(n_tokens=16, problems=problems)
