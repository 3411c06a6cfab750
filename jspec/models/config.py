"""Define the config of a decoder, one for the whole family.

In reading order: `RopeKind`, `Rope`, `DecoderConfig`, which `jspec.checkpoints.hf_config` reads and
writes.

Letters: D `width`, F `mlp_width`, N `n_heads`, K `n_kv_heads`, H `head_dim`, V `vocab_size`,
L `n_layers`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jspec.ops import rope


class RopeKind(enum.Enum):
    """Name the published ways to stretch the rotary embedding, as Hugging Face does."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Describe the rotary embedding of a model. Fields a kind does not read stay `None`.

    Attributes:
      kind: how it is stretched.
      theta: base of the wavelengths.
      factor: how much longer texts may be than in pre-training.
      original_length: length of texts in pre-training, tokens.
      low_freq_factor, high_freq_factor: of llama3.
      beta_fast, beta_slow, truncate, mscale, mscale_all_dim: of yarn.
      attention_factor: overrides what yarn and longrope derive.
      short_factors, long_factors: of longrope, one a frequency.
    """

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10_000.0
    factor: float | None = None
    original_length: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None

    def __post_init__(self):
        for name in _SCALINGS[self.kind].needs:
            if getattr(self, name) is None:
                raise ValueError(f"rope type {self.kind.value!r} needs {name}")
        for name in ("theta", *_SCALINGS[RopeKind.LLAMA3].needs):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"rope {name} must be positive, got {value}")

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """Return inverse frequencies `[H/2]`, and the factor on rotated queries and keys.

        longrope's are those for texts within the original length, to which `max_length` of such a
        model is limited: beyond it the published rule changes the keys of tokens already seen.
        """
        scaling, derived = _SCALINGS[self.kind], 1.0
        given = {name: getattr(self, name) for name in scaling.reads}
        given = {name: value for name, value in given.items() if value is not None}
        frequencies = scaling.frequencies(head_dim, self.theta, **given)
        if self.kind is RopeKind.YARN:
            derived = rope.yarn_attention_factor(given["factor"], self.mscale, self.mscale_all_dim)
        elif self.kind is RopeKind.LONGROPE:
            assert self.factor is not None and self.original_length is not None
            derived = rope.longrope_attention_factor(self.factor, self.original_length)
        else:
            return frequencies, derived
        return frequencies, derived if self.attention_factor is None else self.attention_factor


class _Scaling(NamedTuple):
    """Hold the function of a kind of rope, the fields it reads, and those that must be given."""

    frequencies: Callable[..., np.ndarray]
    reads: tuple[str, ...]
    needs: tuple[str, ...]


_LENGTHS = ("factor", "original_length")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_length")
_YARN = (*_LENGTHS, "beta_fast", "beta_slow", "truncate")
_SCALINGS = {
    RopeKind.DEFAULT: _Scaling(rope.default_frequencies, (), ()),
    RopeKind.LINEAR: _Scaling(rope.linear_frequencies, ("factor",), ("factor",)),
    RopeKind.LLAMA3: _Scaling(rope.llama3_frequencies, _LLAMA3, _LLAMA3),
    RopeKind.YARN: _Scaling(rope.yarn_frequencies, _YARN, _LENGTHS),
    RopeKind.LONGROPE: _Scaling(
        rope.longrope_frequencies,
        ("short_factors",),
        ("factor", "short_factors", "long_factors", "original_length"),
    ),
}

ROPE_NAMES = {
    "theta": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
"""Fields of `Rope` whose name in `config.json` is another one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Describe a decoder: Llama, Mistral, Qwen2 or Qwen3, causal or bidirectional.

    Attributes:
      family: name in `jspec.checkpoints.families`; decides only how it is written for Hugging Face.
      vocab_size: V; width: D; mlp_width: F; n_layers: L.
      n_heads: N; n_kv_heads: K, which divides N; head_dim: H, even, and free of D / N.
      max_positions: `max_position_embeddings` of the checkpoint, tokens.
      norm_eps: inside the square root of every norm.
      rope: rotary embedding.
      windows: of each layer, how many positions back it sees (itself included); None for all.
      has_tied_head: the head is the transposed embedding.
      has_qkv_bias, has_out_bias, has_mlp_bias: which projections add a bias.
      has_qk_norm: queries and keys are normalised per head before the rotation.
      is_causal: whether callers build causal masks. The forward itself obeys the `Block`.
    """

    family: str = "llama"
    vocab_size: int
    width: int
    mlp_width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float = 1e-6
    rope: Rope = Rope()
    windows: tuple[int | None, ...] = ()
    has_tied_head: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    is_causal: bool = True

    def __post_init__(self):
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.n_layers)
        sizes = ("vocab_size", "width", "mlp_width", "n_layers", "n_heads", "n_kv_heads")
        for name in (*sizes, "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_kv_heads} key/value heads must divide {self.n_heads} query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if len(self.windows) != self.n_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.n_layers} layers")
        if any(window is not None and window < 1 for window in self.windows):
            raise ValueError(f"windows must be at least 1 position, got {self.windows}")
        factors = self.rope.short_factors
        if factors is not None and len(factors) != self.head_dim // 2:
            raise ValueError(f"{len(factors)} longrope factors for head_dim {self.head_dim}")

    @property
    def summary(self) -> str:
        """Describe a model in a few words, for people."""
        shape = f"{self.n_layers} layers of width {self.width}"
        return f"{self.family}, {shape}, vocabulary {self.vocab_size:,}"

    @property
    def max_length(self) -> int:
        """Return the longest text the model serves, tokens: what its rope scaling stretches to.

        `max_position_embeddings` counts before stretching for linear scaling, and either way for
        yarn; it counts after it for llama3.
        """
        original, factor = self.rope.original_length or self.max_positions, self.rope.factor or 1
        match self.rope.kind:
            case RopeKind.LINEAR:
                return int(self.max_positions * factor)
            case RopeKind.YARN:
                return max(self.max_positions, int(original * factor))
            case RopeKind.LONGROPE:
                return min(self.max_positions, original)
        return self.max_positions
