"""Computes the law and the target once more in NumPy and float64, from their definitions alone.

Nothing here uses JAX's or the library's arithmetic, so that a fault which plain and speculative
decoding share (a rotation, a head's group, a cache slot, a stream of the noise) is seen too.
In reading order: the noise, the filters, the decoder, the weights it reads.

Source: Salmon et al. 2011 (Threefry-2x32, 20 rounds); Touvron et al. 2023 (the decoder).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes  # NumPy's bfloat16, in files too
import numpy as np

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.export import hugging_face_tensors
from jspec.checkpoints.layouts import HUGGING_FACE
from jspec.checkpoints.number_types import QUANTISED, NumberTypes
from jspec.checkpoints.quantise import dequantised
from jspec.checkpoints.target import Target
from jspec.models.config import DecoderConfig, RopeKind
from jspec.models.weights import is_matrix
from jspec.ops.linear import OutputsFirst, Quantised

Weights = dict[str, np.ndarray]
"""By their Hugging Face names, matrices with the output axis first."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


# --- the noise -----------------------------------------------------------------------------------


def threefry(key: tuple[int, int], high: Any, low: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute Threefry-2x32 with 20 rounds: two words of output for every counter."""
    mask = np.uint64(0xFFFFFFFF)
    keys = [np.uint64(key[0]), np.uint64(key[1])]
    keys.append(keys[0] ^ keys[1] ^ np.uint64(0x1BD11BDA))
    x = (np.asarray(high, np.uint64) + keys[0]) & mask
    y = (np.asarray(low, np.uint64) + keys[1]) & mask
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = (x + y) & mask
            y = ((y << np.uint64(rotation)) | (y >> np.uint64(32 - rotation))) & mask
            y = y ^ x
        x = (x + keys[(group + 1) % 3]) & mask
        y = (y + keys[(group + 2) % 3] + np.uint64(group + 1)) & mask
    return x, y


def gumbel(seed: int, sample: int, position: int, vocabulary: int, stream: int = 0) -> np.ndarray:
    """Compute the law's noise of one text position: nested folds, then one counter a token id."""
    key = (0, seed)
    for number in (stream, sample, position):
        first, second = threefry(key, 0, number)
        key = (int(first), int(second))
    first, second = threefry(key, np.zeros(vocabulary, np.uint64), np.arange(vocabulary))
    bits = (first ^ second).astype(np.uint32)
    uniform = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    uniform = np.minimum(uniform, np.float32(1 - 2.0**-24)).astype(np.float64)
    return -np.log(-np.log1p(-uniform))


# --- the filters ---------------------------------------------------------------------------------


def probs_of(logits: np.ndarray, request: Any) -> np.ndarray:
    """Compute the law by its words, with sorting: temperature, top-k, top-p, min-p."""
    if request.temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    scaled = np.asarray(logits, np.float64) / request.temperature
    kept = np.ones(len(scaled), bool)
    if 0 < request.top_k < len(scaled):
        kept &= scaled >= np.sort(scaled)[-request.top_k]
    if request.top_p < 1:
        weight = np.where(kept, np.exp(scaled - scaled.max()), 0)
        order = np.argsort(-weight, kind="stable")
        before = np.cumsum(weight[order]) - weight[order]
        last = order[np.flatnonzero(before < request.top_p * weight.sum())[-1]]
        kept &= scaled >= scaled[last]
    if request.min_p > 0:
        kept &= scaled >= scaled.max() + np.log(request.min_p)
    weight = np.where(kept, np.exp(scaled - scaled.max()), 0)
    return weight / weight.sum()


def scores_of(logits: np.ndarray, noise: np.ndarray, request: Any) -> np.ndarray:
    """Score every token, up to a constant; -inf where a filter drops it."""
    if request.temperature == 0:
        return np.asarray(logits, np.float64)
    probs = probs_of(logits, request)
    return np.where(probs > 0, np.log(np.maximum(probs, 1e-300)) + noise, -np.inf)


# --- the decoder ---------------------------------------------------------------------------------


def why_not(config: DecoderConfig) -> str | None:
    """Tell what this decoder has that the reference has not; None where it has everything."""
    if config.rope.kind is not RopeKind.DEFAULT:
        return f"rope {config.rope.kind.value} is not in the reference"
    return None


def logits_of(config: DecoderConfig, weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """Compute logits after every token of a text, `"T V"`: one pass, no cache."""
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    for layer in range(config.n_layers):
        x = x + mixed(config, weights, layer, x)
        x = x + fed(config, weights, layer, x)
    return said(config, weights, x)


def mixed(config: DecoderConfig, weights: Weights, layer: int, x: np.ndarray) -> np.ndarray:
    """Compute what the attention of a layer adds to the residual it reads."""
    own = _of_layer(weights, layer)
    normed = _norm(x, own["input_layernorm.weight"], config.norm_eps)
    return _attention(config, own, normed, config.windows[layer])


def fed(config: DecoderConfig, weights: Weights, layer: int, x: np.ndarray) -> np.ndarray:
    """Compute what the MLP of a layer adds to the residual it reads."""
    own = _of_layer(weights, layer)
    normed = _norm(x, own["post_attention_layernorm.weight"], config.norm_eps)
    gate = _linear(own, "mlp.gate_proj", normed)
    up = _linear(own, "mlp.up_proj", normed)
    return _linear(own, "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def said(config: DecoderConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Compute the logits of what leaves the last layer."""
    x = _norm(x, weights["model.norm.weight"], config.norm_eps)
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def _of_layer(weights: Weights, layer: int) -> Weights:
    start = f"model.layers.{layer}."
    return {name.removeprefix(start): x for name, x in weights.items() if name.startswith(start)}


def _attention(
    config: DecoderConfig, own: Weights, x: np.ndarray, window: int | None
) -> np.ndarray:
    T, H = len(x), config.head_dim
    queries, keys, values = (
        _linear(own, f"self_attn.{name}_proj", x).reshape(T, -1, H) for name in "qkv"
    )
    if config.has_qk_norm:
        queries = _norm(queries, own["self_attn.q_norm.weight"], config.norm_eps)
        keys = _norm(keys, own["self_attn.k_norm.weight"], config.norm_eps)
    queries, keys = _rotated(queries, config.rope.theta), _rotated(keys, config.rope.theta)
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    is_seen = ((distance >= 0) | (not config.is_causal)) & (distance < (window or T))
    mixed = np.empty_like(queries)
    for head in range(config.n_heads):
        shared = head * keys.shape[1] // config.n_heads
        score = queries[:, head] @ keys[:, shared].T / np.sqrt(H)
        score = np.where(is_seen, score, -np.inf)
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        weight = weight / weight.sum(axis=1, keepdims=True)
        mixed[:, head] = weight @ values[:, shared]
    return _linear(own, "self_attn.o_proj", mixed.reshape(T, -1))


def _linear(own: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0.0)


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _rotated(x: np.ndarray, theta: float) -> np.ndarray:
    """Turn row t by t * theta^(-2i / H): pairs are element i and element i + H/2."""
    half = x.shape[2] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# --- weights -------------------------------------------------------------------------------------


def weights_in_memory(target: Target) -> Weights:
    """Give the weights of a model that came from no file as its checkpoint would have them."""
    stored = jax.tree.leaves(HUGGING_FACE.stored(target.model.config))
    leaves = map(_wide, jax.tree.leaves(target.params, is_leaf=_is_narrow))
    return {each.name: each.save(leaf) for each, leaf in zip(stored, leaves, strict=True)}


def weights_on_disk(checkpoint: Checkpoint) -> Weights | None:
    """Read the tensors of a checkpoint; None where they are no decoder's safetensors or GGUF file.

    Those of a GGUF file are dequantised and put into Hugging Face's order as in loading: a fault of
    that is not seen here.
    """
    from safetensors.numpy import load_file

    found: Weights = {}
    if checkpoint.is_gguf:
        tensors = hugging_face_tensors(checkpoint)
        return {name: value.astype(np.float64) for name, value in tensors.items()}
    for file in sorted(checkpoint.files.glob("*.safetensors")):
        found |= {name: value.astype(np.float64) for name, value in load_file(file).items()}
    return found if "model.embed_tokens.weight" in found else None


def narrowed(weights: Weights, config: DecoderConfig, types: NumberTypes, stored: str) -> Weights:
    """Round weights as they are when a target loads them in these types.

    Args:
      stored: type of the weights in the checkpoint.
    """
    ours = {theirs: name for name, theirs in HUGGING_FACE.names.items()}

    def one(name: str, value: np.ndarray) -> np.ndarray:
        weight = ours.get(re.sub(r"^model\.layers\.\d+\.", "", name))
        narrow = types.weights if weight and is_matrix(weight, config) else None
        if narrow in QUANTISED:
            return dequantised(value, str(narrow))
        if (narrow or types.dtype) == "bfloat16" and stored != "bfloat16":
            return value.astype(ml_dtypes.bfloat16).astype(np.float64)
        return value

    return {name: one(name, value) for name, value in weights.items()}


def _is_narrow(node: Any) -> bool:
    return isinstance(node, Quantised | OutputsFirst)


def _wide(value: Any) -> np.ndarray:
    if isinstance(value, OutputsFirst):
        return _wide(value.values.T)
    if isinstance(value, Quantised):
        return _wide(value.values) * _wide(value.scale)
    return np.asarray(value, np.float64)
