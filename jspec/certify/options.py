"""Holds what a certificate is asked for."""

from __future__ import annotations

import dataclasses

from jspec.certify.workload import Workload
from jspec.config import InferConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """What is to be certified on the models of a config.

    Attributes:
      is_quick: fewer of the checks on tiny models, and smaller ones.
      drafters: names; None for all that go with the target.
      prompts: a JSONL file; None for the built-in ones.
      n_prompts: prompts used, from the first on; None for all.
      batch_sizes: rows decoded together; plain decoding takes the first.
      workloads: more prompts, at one temperature each.
    """

    config: InferConfig
    is_quick: bool
    drafters: tuple[str, ...] | None
    prompts: str | None
    n_prompts: int | None
    max_new_tokens: int
    batch_sizes: tuple[int, ...]
    workloads: tuple[Workload, ...] = ()
