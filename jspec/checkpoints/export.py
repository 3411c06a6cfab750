"""A checkpoint written once more, as a Hugging Face directory that other programs load.

In reading order: `hugging_face_tensors`, and `write_copy`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.hf_config import write_hf_config
from jspec.checkpoints.layouts import HUGGING_FACE
from jspec.checkpoints.tokenizer.copies import copy_tokenizer
from jspec.checkpoints.write import begin_directory


def hugging_face_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Read a decoder's tensors under Hugging Face's names, their rows in its order.

    Raises:
      UserError: files that cannot be read.
    """
    stored = (layout.stored(checkpoint.config) for layout in (checkpoint.layout, HUGGING_FACE))
    pairs, tensors = zip(*map(jax.tree.leaves, stored), strict=True), checkpoint.decoder_tensors
    return {
        ours.name: np.ascontiguousarray(ours.save(theirs.load(tensors[theirs.name].read())))
        for theirs, ours in pairs
    }


def write_copy(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the model and its tokenizer; the weights of a GGUF file become float32."""
    from safetensors.numpy import save_file

    ids = {name: checkpoint.values.get(name) for name in ("bos_token_id", "eos_token_id")}
    begin_directory(directory, write_hf_config(checkpoint.config) | {"dtype": "float32"} | ids)
    tensors = hugging_face_tensors(checkpoint)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(checkpoint.files, directory)
