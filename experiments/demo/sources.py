"""Where the corpora of the demo models are from, and under which licence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jspec.errors import UserError
from jspec.train.corpus import corpus_name, read_rows


@dataclasses.dataclass(frozen=True)
class Source:
    """What a corpus is.

    Attributes:
      content: what is in it, and by whom.
      repository: on GitHub, from which it was taken.
      licence: of the text, by its authors.
    """

    content: str
    repository: str
    licence: str


SOURCES = {
    "gsm8k_train": Source(
        "GSM8K, training split: school problems and worked solutions (Cobbe et al. 2021)",
        "openai/grade-school-math",
        "MIT",
    ),
    "math_worked": Source(
        "MATH, test problems outside of MATH-500, with solutions (Hendrycks et al. 2021)",
        "deepseek-ai/DeepSeek-Coder",
        "MIT",
    ),
    "mbpp_train": Source(
        "MBPP, tasks outside of the test split, with code (Austin et al. 2021, google-research)",
        "deepseek-ai/DeepSeek-Coder",
        "CC-BY-4.0",
    ),
    "novels": Source(
        "Passages of English novels published by 1922",
        "computationalstylistics/100_english_novels",
        "public domain",
    ),
    "peps": Source(
        "Python Enhancement Proposals, by their authors",
        "python/peps",
        "public domain or CC0-1.0",
    ),
    "sgd_dialogues": Source(
        "Schema-Guided Dialogue, words only (Rastogi et al. 2020)",
        "google-research-datasets/dstc8-schema-guided-dialogue",
        "CC-BY-SA-4.0",
    ),
    "tiny_shakespeare": Source(
        "Plays of Shakespeare, in pieces", "nathan-barry/tiny-diffusion", "public domain"
    ),
    "tinystories_sample": Source(
        "Beginning of the TinyStories training text, written by a model (Eldan and Li 2023)",
        "gusjengis/toy-RNN",
        "CDLA-Sharing-1.0",
    ),
    "tldr_pages": Source(
        "Help pages of commands, in English, by the tldr-pages contributors",
        "tldr-pages/tldr",
        "CC-BY-4.0",
    ),
    "wikipedia_sample": Source(
        "Articles of the English Wikipedia, in passages, by its contributors",
        "HKUNLP/DiffuLLaMA",
        "CC-BY-SA",
    ),
}
"""By the name of the corpus. Some repositories hold a copy; the licence is that of the text."""

CHANGES = (
    "The corpora are excerpts. Rows that share a run of 13 words with a prompt of common "
    "benchmarks, and rows that repeat another, were left out before training."
)


def source_cells(path: Path) -> list[str]:
    """What, where from and under which licence; a corpus of token ids was written by a model.

    Raises:
      UserError: a text whose licence is not known.
    """
    source = SOURCES.get(corpus_name(path))
    if source is not None:
        link = f"[{source.repository}](https://github.com/{source.repository})"
        return [source.content, link, source.licence]
    first = next(read_rows(path))
    if first.text is None and not first.messages:
        return ["Written by a model of this series", "-", "as the texts which that model learnt"]
    raise UserError(
        f"no source and licence are known for the corpus {corpus_name(path)}; add it to SOURCES in "
        f"{Path(__file__).name}"
    )
