"""What a learned reward has to beat: distances between pixels, and an encoder that never saw an image.

Both are embeddings, for `GoalDistance` like any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PIXEL_SIDE = 16
RANDOM_SIDE = 64
PATCH = 8
STRIDE = 4
FILTERS = 32
POOL = 3


def block_mean(frames: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Shrinks frames by averaging blocks.

    Args:
        frames: uint8 (N, S, S, 3), S >= side. Blocks differ in size by a pixel where S is no multiple of side.
        side: blocks per side.

    Returns:
        float32 (N, side, side, 3) in [0, 1].

    Raises:
        ValueError: frames of another type or shape, or too small.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < side:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; uint8 (N, S, S, 3) with S >= {side} expected")
    height, width = frames.shape[1:3]
    rows = np.linspace(0, height, side + 1).astype(int)
    columns = np.linspace(0, width, side + 1).astype(int)
    sums = np.add.reduceat(frames, rows[:-1], axis=1, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns[:-1], axis=2)
    area = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    return (sums / (255.0 * area[None, :, :, None])).astype(np.float32)


def pixel_embedding(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Frames, uint8 (N, S, S, 3), as 16 x 16 RGB thumbnails in [0, 1], flattened: float32 (N, 768)."""
    return block_mean(frames, PIXEL_SIDE).reshape(len(frames), -1)


class RandomEncoder:
    """One convolution with random filters, rectified and pooled: what the architecture gives without learning.

    8 x 8 patches of a 64 x 64 thumbnail, stride 4, 32 filters, ReLU, means over a 3 x 3 grid: D = 288.
    """

    def __init__(self, seed: int = 0) -> None:
        """Draws the filters; the same seed gives the same encoder."""
        rng = np.random.default_rng(seed)
        fan_in = PATCH * PATCH * 3
        self._filters = (rng.standard_normal((fan_in, FILTERS)) * np.sqrt(2 / fan_in)).astype(np.float32)

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds frames, uint8 (N, S, S, 3) with S >= 64, to float32 (N, 288)."""
        thumbnails = block_mean(frames, RANDOM_SIDE) - np.float32(0.5)
        windows = np.lib.stride_tricks.sliding_window_view(thumbnails, (PATCH, PATCH), axis=(1, 2))
        windows = windows[:, ::STRIDE, ::STRIDE]
        grid = windows.shape[1]
        responses = np.maximum(windows.reshape(len(frames), grid, grid, -1) @ self._filters, 0)
        cells = responses.reshape(len(frames), POOL, grid // POOL, POOL, grid // POOL, FILTERS)
        return cells.mean(axis=(2, 4), dtype=np.float32).reshape(len(frames), -1)
