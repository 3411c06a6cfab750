"""Checkpoints as `transformers` reads them, for a worker that is to decode with the same weights.

A Hugging Face directory is taken as it is. A GGUF file is written out, as the other library would
need two more for it, and would read it slowly; and so is a draft that has its target's embedding,
which is no model by itself.
"""

from __future__ import annotations

from pathlib import Path

from jspec.bench.benchmark import Benchmark, assistant_of
from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.export import write_copy
from jspec.checkpoints.write import write_checkpoint


def directories_for_peers(benchmark: Benchmark, folder: Path) -> tuple[Path, Path | None]:
    """Where the target is, and the draft model if there is one.

    Args:
      folder: of what has to be written; empty.
    """
    models, small = benchmark.models, assistant_of(benchmark.models)
    target = models.checkpoint.files
    if models.checkpoint.is_gguf:
        target = folder / "target"
        write_copy(models.checkpoint, target)
    if small is None:
        return target, None
    assistant = small.files
    if small.is_gguf or small.shares_embedding:
        assistant = folder / "assistant"
        whole = load_beside(benchmark.sessions[next(iter(benchmark.peer_types))].target, small)
        write_checkpoint(assistant, whole.params, whole.model.config)
    return target, assistant
