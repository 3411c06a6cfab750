"""Falcon's head and its drafting once more, in NumPy and float64: dense masks, no cache.

Every row that the head was ever fed is kept, with the rows that it saw; an output is computed from
all of them at once. Weights have their released names.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), sections 3.1 and 3.4, and the released code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SlowHead:
    """The weights, `(out, in)` as stored; `embedding` and `head` are the target's, `"V D"`."""

    tensors: Mapping[str, np.ndarray]
    embedding: np.ndarray
    head: np.ndarray
    n_heads: int
    block_size: int
    is_sequence: bool = False
    theta: float = 10000.0
    eps: float = 1e-6

    def lstm(self, x: np.ndarray, before: np.ndarray) -> np.ndarray:
        """State `[layer, (hidden, cell), D]` after one row of width 2D."""
        after = np.zeros_like(before)
        for layer in range(2):
            hidden, cell = before[layer]
            gates = sum(
                self.tensors[f"lstm.weight_{kind}_l{layer}"].astype(np.float64) @ given
                + self.tensors[f"lstm.bias_{kind}_l{layer}"].astype(np.float64)
                for kind, given in (("ih", x), ("hh", hidden))
            )
            write, forget, new, out = np.split(np.asarray(gates), 4)
            cell = _sigmoid(forget) * cell + _sigmoid(write) * np.tanh(new)
            x = _sigmoid(out) * np.tanh(cell)
            after[layer] = x, cell
        return after

    def blocks(self, x: np.ndarray, positions: np.ndarray, is_seen: np.ndarray) -> np.ndarray:
        """Rows `[R, D]` through the attention blocks, of which row i sees `is_seen[i]`."""
        n_layers = len({name.split(".")[1] for name in self.tensors if name.startswith("layers")})
        for i in range(n_layers):
            own = {
                name.removeprefix(f"layers.{i}."): tensor.astype(np.float64)
                for name, tensor in self.tensors.items()
                if name.startswith(f"layers.{i}.")
            }
            normed = self._norm(x, own["input_layernorm.weight"]) if i else x
            x = x + self._attention(own, normed, positions, is_seen)
            normed = self._norm(x, own["post_attention_layernorm.weight"])
            gate = normed @ own["mlp.gate_proj.weight"].T
            up = normed @ own["mlp.up_proj.weight"].T
            x = x + (gate * _sigmoid(gate) * up) @ own["mlp.down_proj.weight"].T
        return x

    def _attention(self, own, x, positions, is_seen):
        queries, keys, values = (x @ own[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        width = queries.shape[1] // self.n_heads
        group = queries.shape[1] // keys.shape[1]
        mixed = []
        for n in range(self.n_heads):
            mine, shared = (slice(m * width, (m + 1) * width) for m in (n, n // group))
            query = self._rotated(queries[:, mine], positions)
            scores = query @ self._rotated(keys[:, shared], positions).T / np.sqrt(width)
            scores = np.where(is_seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ values[:, shared])
        return np.concatenate(mixed, axis=1) @ own["self_attn.o_proj.weight"].T

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + self.eps) * weight

    def _rotated(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        half = x.shape[1] // 2
        pairs = x[:, :half] + 1j * x[:, half:]
        turned = pairs * np.exp(1j * np.outer(positions, self.theta ** (-np.arange(half) / half)))
        return np.concatenate([turned.real, turned.imag], axis=1)


class SlowText:
    """What one head was fed of one text.

    Attributes:
      current: the row that stands for every verified position, the last one it was fed in.
      features: the target's, of every verified position.
    """

    def __init__(self, head: SlowHead):
        self.head = head
        self.current: list[int] = []
        self.features: list[np.ndarray] = []
        self._positions: list[int] = []
        self._seen: list[list[int]] = []
        self._states: list[np.ndarray] = []

    def read(
        self,
        text: Sequence[int],
        features: np.ndarray,
        *,
        align: str,
        feeds_again: bool = False,
    ) -> None:
        """Verify positions, the whole prompt or a round's; `text` has the token after the last.

        As released, the last k - 1 positions are fed once more only if the new ones are fewer than
        k. Other rows than those of a first layer may see the difference.

        Args:
          features: the target's, `"T D"`, at the new positions.
          align: whether blocks are counted from the first row of the call, or end with its last.
          feeds_again: always feed them; blocks counted from the left then begin at the new rows.
        """
        k, n_new = self.head.block_size, len(features)
        n_again = k - 1 if feeds_again or n_new < k else 0
        first = max(len(self.current) - n_again, 0)
        self.features += list(features)
        rows = len(self.features) - first
        start = rows % k if align == "right" else n_again if n_new >= k else 0
        block = (np.arange(rows) - start) // k
        past = self.current[:first]
        tokens = [text[p + 1] for p in range(first, first + rows)]
        fed = self._feed(
            tokens,
            self.features[first:],
            range(first, first + rows),
            block[None, :] <= block[:, None],
            past,
        )
        self.current = past + fed

    def predicted(self) -> np.ndarray:
        """Outputs at the last k positions."""
        return self._outputs()[self.current[-self.head.block_size :]]

    def draft(self, paths: Sequence[Path], tokens: Mapping[Path, int]) -> dict[Path, np.ndarray]:
        """Logits of the row that serves each node, given the tokens of the nodes above it.

        Node (r1, ..., rd) is served by the block of its ancestor at depth b = k floor((d - 1) / k),
        whose rows see the text, the blocks above and one another.
        """
        k, n, n_rows = self.head.block_size, len(self.current), len(self._seen)
        blocks: dict[Path, list[int]] = {(): self.current[-k:]}
        for node in sorted({p[: k * ((len(p) - 1) // k)] for p in paths} - {()}, key=len):
            above = [node[:d] for d in range(0, len(node), k)]
            past = self.current + [row for other in above[1:] for row in blocks[other]]
            parent, start = blocks[above[-1]], n + len(node) - k
            blocks[node] = self._feed(
                [tokens[node[:d]] for d in range(len(node) - k + 1, len(node) + 1)],
                self._outputs()[parent],
                range(start, start + k),
                np.ones((k, k), bool),
                past,
                after=parent[-1],
            )
        logits = self._outputs() @ self.head.head.T
        del self._positions[n_rows:], self._seen[n_rows:], self._states[n_rows:]
        served = {}
        for path in paths:
            number, place = divmod(len(path) - 1, k)
            served[path] = logits[blocks[path[: number * k]][place]]
        return served

    def _feed(self, tokens, features, positions, is_seen, past, after=None) -> list[int]:
        """Rows that see `past` and one another as told; the LSTM goes on from row `after`."""
        new = list(range(len(self._seen), len(self._seen) + len(tokens)))
        before = (past[-1] if past else None) if after is None else after
        for i, (token, feature) in enumerate(zip(tokens, features, strict=True)):
            x = np.concatenate([self.head.embedding[token], feature]).astype(np.float64)
            state = np.zeros((2, 2, len(feature)))
            if before is not None and self.head.is_sequence:
                state = self._states[before]
            self._states.append(self.head.lstm(x, state))
            self._seen.append(past + [new[j] for j in np.flatnonzero(is_seen[i])])
            before = new[i]
        self._positions += list(positions)
        return new

    def _outputs(self) -> np.ndarray:
        mask = np.zeros((len(self._seen),) * 2, bool)
        for row, seen in enumerate(self._seen):
            mask[row, seen] = True
        mixed = np.stack([state[1, 0] for state in self._states])
        return self.head.blocks(mixed, np.asarray(self._positions), mask)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
