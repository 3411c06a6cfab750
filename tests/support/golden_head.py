"""The golden head: made-up weights whose outputs under the released code are known."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.drafters.falcon.checkpoint import read_config, read_params
from jspec.models.sar_head import LstmMode, SarModel, build
from jspec.sharding import make_mesh
from jspec.state import Params

V, D, F = 32, 8, 16


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """A head of made-up weights, and the embedding beside it."""

    model: SarModel
    params: Params
    embedding: jax.Array


def golden_shapes(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Released names, in the order in which the golden weights are numbered."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (V, D)}
    for i in range(n_layers):
        layer: dict[str, tuple[int, ...]] = {
            f"self_attn.{name}_proj.weight": (D, D) for name in "qkvo"
        }
        layer |= {"mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D)}
        layer |= {"mlp.down_proj.weight": (D, F)}
        layer |= {"input_layernorm.weight": (D,)} if i else {}
        layer |= {"post_attention_layernorm.weight": (D,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    for i, width in enumerate((2 * D, D)):
        shapes |= {f"lstm.weight_ih_l{i}": (4 * D, width), f"lstm.weight_hh_l{i}": (4 * D, D)}
        shapes |= {f"lstm.bias_ih_l{i}": (4 * D,), f"lstm.bias_hh_l{i}": (4 * D,)}
    return shapes


def golden_tensors(weights: str, n_layers: int) -> dict[str, np.ndarray]:
    """Sines, of the "first" or the "second" set."""
    tensors = {}
    for t, (name, shape) in enumerate(golden_shapes(n_layers).items()):
        n = np.arange(np.prod(shape), dtype=np.float64)
        scale, pace = (0.8, 0.7 + 0.05 * t) if weights == "first" else (0.2, 0.7)
        values = scale * np.sin(pace * n + t) + ("norm" in name)
        tensors[name] = values.reshape(shape).astype(np.float32)
    return tensors


@functools.cache
def golden(
    weights: str = "first",
    *,
    k: int = 2,
    n_layers: int = 1,
    mode: LstmMode = LstmMode.POINTWISE,
) -> Golden:
    """The golden head, read from a directory in the released layout."""
    config = dict(vocab_size=V, hidden_size=D, intermediate_size=F, num_attention_heads=2)
    config |= dict(num_hidden_layers=n_layers, k_mask=k, lstm_mode=mode.value)
    tensors = golden_tensors(weights, n_layers)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(tensors, Path(folder, "model.safetensors"))
        checkpoint = find_checkpoint(folder)
        head = read_config(checkpoint)
        model = build(head)
        params = read_params(checkpoint, head, model, dtype="float32", mesh=make_mesh())
    return Golden(model, params, jnp.asarray(tensors["embed_tokens.weight"]))


def golden_tokens(count: int) -> np.ndarray:
    """The tokens that the rows of the golden text are fed."""
    return (3 * np.arange(count) + 1) % V


def golden_features(count: int) -> np.ndarray:
    return np.cos(0.5 * np.arange(count * D)).reshape(count, D).astype(np.float32)


def golden_target_head() -> np.ndarray:
    """The target's head, `"V D"`."""
    return np.sin(1.3 * np.arange(V * D) + 2).reshape(V, D)
