"""Latents to codes on the robot, where a tokenizer's graph ends before its codebook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


def quantize(latents: NDArray[np.float32], codebook: NDArray[np.float32]) -> tuple[Codes, NDArray[np.float64]]:
    """The nearest code of each latent by squared distance, and how far a frame's latents are from them.

    Args:
        latents: float32 (C, L * z), z fastest.
        codebook: float32 (K, z).

    Returns:
        codes, int64 (C, L); root mean square of the differences, float64 (C,).
    """
    vectors = latents.reshape(len(latents), -1, codebook.shape[1]).astype(np.float32, copy=False)
    # |v|^2 is the same for all codes of a vector.
    scores = np.square(codebook).sum(axis=1) - 2 * (vectors @ codebook.T)
    codes = scores.argmin(axis=2).astype(np.int64)
    differences = (vectors - codebook[codes]).astype(np.float64)
    return codes, np.sqrt(np.square(differences).mean(axis=(1, 2)))
