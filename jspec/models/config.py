"""What a decoder is: one config for the whole family.

In reading order: `RopeKind`, `Rope`, `DecoderConfig`, which `jspec.checkpoints.hf_config` reads and
writes.

Letters: D `width`, F `mlp_width`, N `n_heads`, K `n_kv_heads`, H `head_dim`, V `vocab_size`,
L `n_layers`.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from jspec.ops import rope


class RopeKind(enum.Enum):
    """Published ways to stretch the rotary embedding, by their Hugging Face names."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding of a model. Fields a kind does not read stay `None`.

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
        for name in _ROPE_NEEDS[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"rope type {self.kind.value!r} needs {name}")
        for name in ("theta", *_ROPE_NEEDS[RopeKind.LLAMA3]):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"rope {name} must be positive, got {value}")

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """Inverse frequencies `[H/2]`, and the factor on rotated queries and keys.

        longrope's are those for texts within the original length, to which `max_length` of such a
        model is limited: beyond it the published rule changes the keys of tokens already seen.
        """
        match self.kind:
            case RopeKind.DEFAULT:
                return rope.default_frequencies(head_dim, self.theta), 1.0
            case RopeKind.LINEAR:
                return rope.linear_frequencies(head_dim, self.theta, factor=self._factor), 1.0
            case RopeKind.LLAMA3:
                frequencies = rope.llama3_frequencies(
                    head_dim,
                    self.theta,
                    factor=self._factor,
                    low_freq_factor=self.low_freq_factor or 0.0,
                    high_freq_factor=self.high_freq_factor or 0.0,
                    original_length=self._original_length,
                )
                return frequencies, 1.0
            case RopeKind.YARN:
                return self._yarn(head_dim)
            case RopeKind.LONGROPE:
                frequencies = rope.longrope_frequencies(
                    head_dim, self.theta, dimension_factors=self.short_factors or ()
                )
                derived = rope.longrope_attention_factor(self._factor, self._original_length)
                return frequencies, _first(self.attention_factor, derived)

    def _yarn(self, head_dim: int) -> tuple[np.ndarray, float]:
        frequencies = rope.yarn_frequencies(
            head_dim,
            self.theta,
            factor=self._factor,
            original_length=self._original_length,
            beta_fast=self.beta_fast or 32.0,
            beta_slow=self.beta_slow or 1.0,
            truncate=_first(self.truncate, True),
        )
        derived = rope.yarn_attention_factor(self._factor, self.mscale, self.mscale_all_dim)
        return frequencies, _first(self.attention_factor, derived)

    @property
    def _factor(self) -> float:
        assert self.factor is not None
        return self.factor

    @property
    def _original_length(self) -> int:
        assert self.original_length is not None
        return self.original_length


_ROPE_NEEDS = {
    RopeKind.DEFAULT: (),
    RopeKind.LINEAR: ("factor",),
    RopeKind.LLAMA3: ("factor", "low_freq_factor", "high_freq_factor", "original_length"),
    RopeKind.YARN: ("factor", "original_length"),
    RopeKind.LONGROPE: ("factor", "short_factors", "long_factors", "original_length"),
}

ROPE_NAMES = {
    "theta": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
"""Fields of `Rope` whose name in `config.json` is another one."""


def _first(*values):
    return next(value for value in values if value is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: Llama, Mistral, Qwen2 or Qwen3, causal or bidirectional.

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
        """What matters of a model in a few words, for people."""
        shape = f"{self.n_layers} layers of width {self.width}"
        return f"{self.family}, {shape}, vocabulary {self.vocab_size:,}"

    @property
    def max_length(self) -> int:
        """Longest text the model serves, tokens: what its rope scaling stretches positions to.

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
