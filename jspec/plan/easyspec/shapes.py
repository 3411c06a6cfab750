"""What a decoder reads and computes in a pass, by its shapes.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493) for the drafters that are compared. Differs: the
paper gives no bytes; they are counted here, norms and biases left out.
"""

from __future__ import annotations

import dataclasses
import math

from jspec.models.config import DecoderConfig

BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes in weights; bytes where a name says so.

    Attributes:
      name: of the checkpoint.
      config: of the decoder.
      weight_bytes: of one weight or cached number.
    """

    name: str
    config: DecoderConfig
    weight_bytes: int = 2

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    def attention_weights(self, heads_over: int = 1) -> float:
        """Of a layer, on each of the devices that share its heads.

        Key/value heads are repeated where the devices do not divide them.
        """
        c = self.config
        of_queries = 2 * c.width * c.n_heads * c.head_dim / heads_over
        return of_queries + 2 * c.width * c.head_dim * self.kv_heads(heads_over)

    def kv_heads(self, heads_over: int = 1) -> int:
        """Key/value heads on each of the devices that share a layer's heads."""
        return math.lcm(self.config.n_kv_heads, heads_over) // heads_over

    def attention_bytes(self, heads_over: int = 1) -> float:
        return self.weight_bytes * self.attention_weights(heads_over)

    @property
    def mlp_weights(self) -> int:
        """Of a layer."""
        return 3 * self.config.width * self.config.mlp_width

    @property
    def mlp_bytes(self) -> int:
        return self.weight_bytes * self.mlp_weights

    @property
    def head_weights(self) -> int:
        return self.config.vocab_size * self.config.width

    @property
    def head_bytes(self) -> int:
        return self.weight_bytes * self.head_weights

    @property
    def vocabulary_bytes(self) -> int:
        """Of embedding and head, which may be one."""
        return self.head_bytes * (1 if self.config.has_tied_head else 2)

    def kv_bytes(self, heads_over: int = 1) -> int:
        """A token takes in one layer's cache, on each of the devices that share its heads."""
        return 2 * self.weight_bytes * self.kv_heads(heads_over) * self.config.head_dim

    @property
    def layers_bytes(self) -> float:
        """Of all layers."""
        return self.n_layers * (self.attention_bytes() + self.mlp_bytes)
