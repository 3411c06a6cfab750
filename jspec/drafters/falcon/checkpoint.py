"""Read and write directories of Falcon heads in the released layout.

A directory has `config.json` and either `pytorch_model.bin`, as released, or `model.safetensors`
with the same names, which is what we write. In reading order: the config, the names and shapes of
the tensors, reading, what a file tells of its LSTM and its embedding, writing.

The released LSTM is torch's: four gates a layer and two biases, of which a pointwise head reads
the rows of three gates and the sum of the biases. What it does not read is written as zeros.

Two fields of `config.json` are ours: `lstm_mode`, and `shares_embedding`, true where the directory
has no copy of the target's embedding, and nothing of a pointwise LSTM that is not read: three
gates, one bias, no recurrent weights. In older ones `has_embedding: false` says that the embedding
alone is missing.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), the released code and drafters.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.fit import check_tensors
from jspec.checkpoints.hf_config import Fields, read_hf_config, with_old_rope, write_hf_config
from jspec.checkpoints.layouts import HUGGING_FACE, Stored
from jspec.checkpoints.params import place
from jspec.checkpoints.tensor_files import Tensors
from jspec.checkpoints.write import begin_directory
from jspec.errors import UserError
from jspec.hosts import fetch
from jspec.models.sar_head import LstmMode, SarConfig, SarModel, abstract_params, build
from jspec.models.weights import AXES, leaf_name
from jspec.sharding import REPLICATED, sharding
from jspec.state import Params

logger = logging.getLogger(__name__)

EMBEDDING = "embed_tokens.weight"

HEAD_AXES: dict[str, tuple[str, ...]] = AXES | {
    "input": ("width", "mlp"),
    "recurrent": ("width", "mlp"),
    "bias": ("mlp",),
}
"""Logical axes of a head's weights, by their last name; the gates of an LSTM count as `mlp`."""

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "quantization_config",
)
"""Released fields that describe the attention blocks, with the defaults of a llama."""

_MAX_SAMPLE = 1 << 20
"""How many weights the evidence of an LSTM looks at."""

_ROWS = 4096
"""How many rows of two embeddings are compared at a time."""


# --- config --------------------------------------------------------------------------------------


def read_config(checkpoint: Checkpoint) -> SarConfig:
    """Read the head that a checkpoint's `config.json` describes."""
    values = dict(checkpoint.values)
    fields = Fields(values, {"qkv_bias": False, "bias": True, "lstm_mode": "pointwise"})
    modes = [mode.value for mode in LstmMode]
    mode = fields.get("lstm_mode")
    try:
        if fields.get("k_mask") is None:
            raise UserError("config.json: no k_mask, the tokens of a pass; give a Falcon drafter")
        if mode not in modes:
            raise UserError(f"config.json: lstm_mode must be {' or '.join(modes)}, got {mode!r}")
        decoder = read_hf_config(
            {name: values[name] for name in _FIELDS if name in values} | {"model_type": "llama"}
        )
        return SarConfig(
            decoder=dataclasses.replace(decoder, has_qkv_bias=fields.flag("qkv_bias")),
            block_size=fields.integer("k_mask"),
            lstm_mode=LstmMode(mode),
            has_lstm_bias=fields.flag("bias"),
        )
    except UserError as error:
        raise UserError(f"{checkpoint.where}/{error}") from None


def config_values(config: SarConfig) -> dict[str, Any]:
    """Write the `config.json` of a head, in the released fields."""
    decoder = dataclasses.replace(config.decoder, family="llama", has_qkv_bias=False)
    values = with_old_rope(write_hf_config(decoder))
    return {
        "model_type": "llama",
        **{name: values[name] for name in _FIELDS if name in values},
        "qkv_bias": config.decoder.has_qkv_bias,
        "bias": config.has_lstm_bias,
        "k_mask": config.block_size,
        "lstm_mode": config.lstm_mode.value,
    }


# --- names and shapes ----------------------------------------------------------------------------


def _stored(model: SarModel, *, is_small: bool) -> Params:
    """Make a tree of `Stored`, structured like the parameters; of two biases the first.

    Args:
      is_small: whether the directory has only what is read.
    """
    has_unread = not (model.config.is_sequence or is_small)
    lstm_names = {"input": "weight_ih", "recurrent": "weight_hh", "bias": "bias_ih"}

    def one(path, leaf) -> Stored:
        part, index, ours = path[0].key, path[1].idx, leaf_name(path)
        if part == "layers":
            name = f"layers.{index}.{HUGGING_FACE.names[ours]}"
            return Stored(name, leaf.shape[::-1], np.transpose, np.transpose)
        name = f"lstm.{lstm_names[ours]}_l{index}"
        if has_unread:
            shape = (4 * model.config.decoder.width, *leaf.shape[:-1])
            return Stored(name, shape, _without_forget, _with_forget)
        return Stored(name, leaf.shape[::-1], np.transpose, np.transpose)

    return jax.tree.map_with_path(one, abstract_params(model, jnp.float32))


def _without_forget(stored: np.ndarray) -> np.ndarray:
    """Turn gates i, f, g, o along the first axis into i, g, o along the last."""
    write, _, new, out = np.split(stored, 4)
    return np.concatenate([write, new, out]).T


def _with_forget(ours: np.ndarray) -> np.ndarray:
    """Turn gates back as they are stored, with zeros for the forget gate."""
    write, new, out = np.split(ours.T, 3)
    return np.concatenate([write, np.zeros_like(write), new, out])


def _second_bias(name: str) -> str | None:
    """Name the bias that is added to this one."""
    return name.replace("bias_ih", "bias_hh") if "bias_ih" in name else None


def tensor_shapes(config: SarConfig, *, is_small: bool = False) -> dict[str, tuple[int, ...]]:
    """List every tensor of a released head but the embedding, also those that are not read.

    Args:
      is_small: list only those that a directory has which shares the embedding.
    """
    width = config.decoder.width
    stored = jax.tree.leaves(_stored(build(config), is_small=is_small))
    shapes = {entry.name: entry.shape for entry in stored}
    for layer in range(0 if is_small and not config.is_sequence else 2):
        shapes[f"lstm.weight_hh_l{layer}"] = (4 * width, width)
        if config.has_lstm_bias:
            shapes[f"lstm.bias_hh_l{layer}"] = (4 * width,)
    return shapes


# --- reading -------------------------------------------------------------------------------------


def read_params(
    checkpoint: Checkpoint,
    config: SarConfig,
    model: SarModel,
    *,
    dtype,
    mesh: Mesh,
) -> Params:
    """Read the parameters of a head's checkpoint, in `dtype`, on their shardings.

    The copy of the embedding is not read; `check_embedding` compares it with the target's.

    Raises:
      UserError: unreadable files; missing, unexpected or misshapen tensors, told all at once.
    """
    values, tensors, directory = dict(checkpoint.values), checkpoint.tensors, checkpoint.files
    said = Fields(values, {"has_embedding": True, "shares_embedding": False})
    is_small = said.flag("shares_embedding")
    shapes = tensor_shapes(config, is_small=is_small)
    if (said.flag("has_embedding") and not is_small) or EMBEDDING in tensors:
        shapes[EMBEDDING] = (config.decoder.vocab_size, config.decoder.width)
    check_tensors(directory, tensors, shapes)
    if "lstm_mode" not in values:
        _warn_of_lstm(directory, config, tensors)

    def one(path, stored: Stored) -> jax.Array:
        array, second = tensors[stored.name].read(), _second_bias(stored.name)
        if second in shapes:
            wide = np.promote_types(array.dtype, np.float32)
            array = array.astype(wide) + tensors[second].read().astype(wide)
        array = stored.load(array)
        where = sharding(mesh, REPLICATED, HEAD_AXES[leaf_name(path)], array.shape)
        return place(array, dtype, where)

    return jax.tree.map_with_path(one, _stored(model, is_small=is_small))


def lstm_evidence(tensors: Tensors) -> str:
    """Tell how a head was trained: "pointwise", "sequence", or "unclear".

    Pointwise training never touches the recurrent weights: they are zeros, as we write them, or
    still uniform in +-1/sqrt(D), as torch draws them, at most shrunk a little by weight decay.
    """
    weights = tensors["lstm.weight_hh_l0"].read()
    flat = weights.reshape(-1)
    sample = flat[:: -(-flat.size // _MAX_SAMPLE)].astype(np.float64)
    sample = sample - sample.mean()
    variance = np.mean(sample**2)
    if not sample.any() and not flat[0]:
        return LstmMode.POINTWISE.value
    kurtosis = np.mean(sample**4) / max(variance**2, 1e-300)
    ratio = np.sqrt(variance * 3 * weights.shape[1])
    noise = 1.2 / np.sqrt(sample.size)  # of the kurtosis of uniform numbers, one deviation
    is_flat, is_fresh = abs(kurtosis - 1.8) < 0.03 + 4 * noise, 0.87 < ratio < 1.03 + noise
    if is_flat and is_fresh:
        return LstmMode.POINTWISE.value
    return "unclear" if is_flat or is_fresh else LstmMode.SEQUENCE.value


def _warn_of_lstm(directory: Path, config: SarConfig, tensors: Tensors) -> None:
    evidence = lstm_evidence(tensors)
    if evidence != config.lstm_mode.value:
        logger.warning(
            "%s: config.json has no lstm_mode, read as %s; the recurrent weights look %s: set "
            "lstm_mode if drafts are seldom kept",
            directory,
            config.lstm_mode.value,
            evidence,
        )


def check_embedding(checkpoint: Checkpoint, embedding: jax.Array) -> bool | None:
    """Tell whether a checkpoint's copy of the embedding is the target's; warn where it is not.

    Args:
      embedding: the target's, `"V D"`; the copy is compared in its type.

    Returns:
      None if the checkpoint has no copy.
    """
    tensors = checkpoint.tensors
    if EMBEDDING not in tensors:
        return None
    copy = tensors[EMBEDDING].read()
    is_same = copy.shape == embedding.shape and all(
        np.array_equal(
            copy[start : start + _ROWS].astype(embedding.dtype),
            fetch(embedding[start : start + _ROWS]),
        )
        for start in range(0, len(copy), _ROWS)
    )
    if not is_same:
        logger.warning(
            "%s: %s is not the target's embedding, which is used in its place; the drafter may "
            "have been trained for another target",
            checkpoint.where,
            EMBEDDING,
        )
    return is_same


# --- writing -------------------------------------------------------------------------------------


def write_checkpoint(
    directory: Path,
    params: Params,
    config: SarConfig,
    *,
    embedding: jax.Array | None = None,
    extra_config: dict[str, Any] | None = None,
) -> None:
    """Write a directory with the released names.

    Args:
      params: float32, float16 or bfloat16; written as they are.
      embedding: the target's, for a copy of it; without, `config.json` says that it is shared, and
        nothing is written that is not read.
      extra_config: more entries of `config.json`.
    """
    from safetensors.numpy import save_file

    dtype = jax.tree.leaves(params)[0].dtype
    values = config_values(config) | {"torch_dtype": dtype.name}
    is_small = embedding is None
    if is_small:
        values["shares_embedding"] = True
    shapes = tensor_shapes(config, is_small=is_small)
    tensors = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}

    def fill(stored: Stored, leaf: jax.Array) -> None:
        tensors[stored.name] = np.ascontiguousarray(stored.save(np.asarray(leaf)))

    jax.tree.map(fill, _stored(build(config), is_small=is_small), params)
    if embedding is not None:
        tensors[EMBEDDING] = np.asarray(embedding).astype(dtype)
    begin_directory(directory, values | (extra_config or {}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
