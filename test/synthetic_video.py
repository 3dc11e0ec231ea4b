"""The simplest task with progress, for tests."""

from __future__ import annotations

import numpy as np


def moving_square(count: int = 40, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright, soft-edged square that walks from left to right: every step brings it closer to its last place.

    Returns:
        `count` frames, uint8 RGB (height, width, 3).
    """
    x = np.arange(width)[None, :]
    y = np.abs(np.arange(height)[:, None] - height / 2)
    frames = []
    for index in range(count):
        centre = width * (0.2 + 0.6 * index / max(count - 1, 1))
        soft = np.clip(1.6 - np.abs(x - centre) / (0.3 * width), 0, 1) * np.clip(1.6 - y / (0.3 * height), 0, 1)
        frames.append(np.repeat((60 + 180 * soft)[..., None], 3, axis=2).astype(np.uint8))
    return frames
