"""Quantise matrices on the host: one symmetric scale for every output channel.

In reading order: `channel_scales` of a whole matrix, `quantise` of a part of it with them, and
`quantised`, both for a matrix in memory. They go through a matrix in blocks of channels, so that no
second wide copy of it is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from jspec.models.weights import WEIGHT_TYPES

_BLOCK = 2**22
"""Numbers that are float32 at a time."""


def channel_scales(matrix: np.ndarray, weights: str) -> np.ndarray:
    """Return what the values of each channel are multiplied by, float32 `"X 1"`.

    The largest magnitude of a channel becomes the type's largest; a channel of zeros has scale 1.

    Args:
      matrix: `"X I"`, output channels first; whole, whatever of it a device gets.
      weights: a quantised type of `WEIGHT_TYPES`.
    """
    largest = np.empty((len(matrix), 1), np.float32)
    for block in _blocks(matrix):
        largest[block] = np.abs(matrix[block].astype(np.float32)).max(axis=1, keepdims=True)
    return np.where(largest == 0, np.float32(1), largest / _limit(weights))


def quantise(matrix: np.ndarray, scales: np.ndarray, weights: str) -> np.ndarray:
    """Divide a matrix `"X I"`, or a part of one, by its channels' scales, and round."""
    dtype = np.dtype(WEIGHT_TYPES[weights])
    values = np.empty(matrix.shape, dtype)
    for block in _blocks(matrix):
        exact = matrix[block].astype(np.float32) / scales[block]
        values[block] = (exact if weights == "fp8" else np.rint(exact)).astype(dtype)
    return values


def dequantised(matrix: np.ndarray, weights: str) -> np.ndarray:
    """Return what a quantised matrix `"X I"` stands for, float64."""
    scales = channel_scales(matrix, weights)
    return quantise(matrix, scales, weights).astype(np.float64) * scales


def _limit(weights: str) -> np.float32:
    dtype = WEIGHT_TYPES[weights]
    info = ml_dtypes.finfo(dtype) if weights == "fp8" else ml_dtypes.iinfo(dtype)
    return np.float32(info.max)


def _blocks(matrix: np.ndarray) -> Iterator[slice]:
    size = max(_BLOCK // max(matrix.shape[1], 1), 1)
    return (slice(start, start + size) for start in range(0, len(matrix), size))
