"""What n-gram models are tested against: golden entries, and the definitions in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jspec.models.ngram.model import NGramModel
from jspec.train.ngram import estimate

SIGNIFICANT = 2e-6
"""The golden entries are float32 logarithms, printed with seven digits or fewer."""

WORDS = ("<unk>", "a", "b", "c", "</s>", "<s>")
UNK, A, B, C, END, BEGIN = range(len(WORDS))
TEXTS = {
    "A": ["a a b a", "b a a b"],
    "B": ["a a b b b b b b b", "c"],
}
GOLDEN = {
    "A": """
        <unk> -0.90309 0 | <s> 0 -0.30103 | a -0.46943438 -0.30103 | </s> -0.5720968 0
        b -0.5720968 -0.30103
        <s> a -0.37712017 -0.30103 | a a -0.37712017 -0.30103 | b a -0.2984526 -0.30103
        a </s> -0.58682007 0 | b </s> -0.5220179 0 | <s> b -0.41574955 -0.30103
        a b -0.58682007 -0.30103
        <s> a a -0.14885087 0 | b a a -0.33741078 0 | <s> b a -0.124077894 0
        a b a -0.2997394 0 | b a </s> -0.42082912 0 | a b </s> -0.397617 0
        a a b -0.20102891 0
    """,
    "B": """
        <unk> -1 0 | <s> 0 -0.30103 | a -0.6146491 -0.30103 | </s> -0.6146491 0
        c -0.7659168 -0.30103 | b -0.6146491 -0.30103
        <s> a -0.4301247 -0.30103 | a a -0.4301247 -0.30103 | c </s> -0.20660876 0
        b </s> -0.5404639 0 | <s> c -0.4740302 -0.30103 | a b -0.4301247 -0.30103
        b b -0.3422159 -0.47712123
        <s> a a -0.1638568 0 | <s> c </s> -0.09113217 0 | b b </s> -0.7462621 0
        a a b -0.1638568 0 | a b b -0.13823806 0 | b b b -0.13375957 0
    """,
}
"""By n-gram: log10 of its probability and of its backoff, as KenLM's lmplz estimated them."""


def golden_model(name: str) -> tuple[NGramModel, list[str]]:
    """The model of a golden corpus, and the names of its ids; `<s>` is no id of the vocabulary."""
    words = [word for word in WORDS if word not in ("c", "<s>") or word in TEXTS[name][1]]
    words = [word for word in words if word != "<s>"] + ["<s>"]
    texts = [[words.index(word) for word in f"<s> {text} </s>".split()] for text in TEXTS[name]]
    begin = words.index("<s>")
    return estimate(texts, order=3, vocab_size=begin, begin=begin), words


def golden_entries(name: str) -> dict[str, tuple[float, float]]:
    """`GOLDEN`, parsed."""
    lines = [part.split() for line in GOLDEN[name].splitlines() for part in line.split("|")]
    return {" ".join(line[:-2]): (float(line[-2]), float(line[-1])) for line in lines if line}


# --- the definitions, in plain Python ------------------------------------------------------------

Text = Sequence[int]
Gram = tuple[int, ...]


class Reference:
    """Counts in dictionaries and the recursion as it is written, one probability at a time."""

    def __init__(
        self,
        texts: Sequence[Text],
        order: int,
        vocab_size: int,
        begin: int | None,
        prune: int = 0,
    ):
        self.order, self.begin, self.prune = order, begin, prune
        self.n_outcomes = len([v for v in range(vocab_size) if v != begin])
        occurrences: Counter[Gram] = Counter()
        neighbours: dict[Gram, set[int]] = {}
        for text in self._split(texts):
            for i in range(len(text)):
                for n in range(1, min(order, len(text) - i) + 1):
                    gram = tuple(text[i : i + n])
                    occurrences[gram] += 1
                    neighbours.setdefault(gram, set()).add(text[i - 1] if i else -1)
        self.adjusted = {
            gram: count if len(gram) == order or gram[0] == begin else len(neighbours[gram])
            for gram, count in occurrences.items()
            if gram != (begin,)
        }
        self.discounts = [self._discounts(n) for n in range(1, order + 1)]
        self.after: dict[Gram, list[int]] = {}
        for gram, count in self.adjusted.items():
            self.after.setdefault(gram[:-1], []).append(count)

    def _split(self, texts: Sequence[Text]) -> list[list[int]]:
        """Texts that have `begin` at the start only."""
        parts = []
        for text in texts:
            part: list[int] = []
            for token in text:
                if token == self.begin and part:
                    parts.append(part)
                    part = []
                part.append(token)
            parts.append(part)
        return parts

    def _discounts(self, n: int) -> list[float]:
        t = Counter(count for gram, count in self.adjusted.items() if len(gram) == n)
        if not (t[1] and t[2] and t[3]):
            return [0.0, 0.5, 1.0, 1.5]
        y = t[1] / (t[1] + 2 * t[2])
        found = [j - (j + 1) * y * t[j + 1] / t[j] for j in (1, 2, 3)]
        if not all(0 < d <= j for j, d in enumerate(found, 1)):
            return [0.0, 0.5, 1.0, 1.5]
        return [0.0, *found]

    def prob(self, gram: Gram) -> float:
        """p(last token | tokens before it)."""
        if not gram:
            return 1 / self.n_outcomes
        discounts = self.discounts[len(gram) - 1]
        counts = self.after.get(gram[:-1])
        if not counts:
            return self.prob(gram[1:])
        total = sum(counts)
        floor = self.prune if len(gram) == self.order else 0
        taken = [count if count <= floor else discounts[min(count, 3)] for count in counts]
        gamma = sum(taken) / total
        count = self.adjusted.get(gram, 0)
        own = 0 if count <= floor else count - discounts[min(count, 3)]
        return own / total + gamma * self.prob(gram[1:])

    def logprobs(self, text: Text) -> list[float]:
        """Of one text."""
        found, start = [], 0
        for i, token in enumerate(text):
            if token == self.begin:
                start = i
                found.append(0.0)
                continue
            gram = tuple(text[max(start, i + 1 - self.order) : i + 1])
            found.append(math.log(self.prob(gram)))
        return found


def random_texts(rng: np.random.Generator, n: int) -> list[list[int]]:
    """Texts of phrases, some much more frequent than others, with an error in ten; ids below 99."""
    phrases = [rng.integers(0, 99, n_tokens) for n_tokens in rng.integers(1, 6, 40)]
    texts = []
    for _ in range(n):
        chosen = np.minimum(rng.geometric(0.08, rng.integers(0, 9)) - 1, 39)
        text = np.concatenate([*(phrases[i] for i in chosen), np.zeros(0, int)])
        is_error = rng.random(len(text)) < 0.1
        texts.append(np.where(is_error, rng.integers(0, 99, len(text)), text).tolist())
    return texts
