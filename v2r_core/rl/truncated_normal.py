"""DrQ-v2's noise: a normal whose draws are cut off twice, and whose logged density is that of one that is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTION_LIMIT = 1 - 1e-6
"""Noisy actions are clamped to +- this, so that the arc tangent of an action exists."""


def truncated_normal(mean: Tensor, std: float | Tensor, noise: Tensor, clip: float | None = None) -> Tensor:
    """Noisy actions (section 3.1): mean + clip(std * noise), clamped to +-(1 - 1e-6).

    Args:
        mean: (..., A) in [-1, 1].
        std: standard deviation.
        noise: (..., A), standard normal.
        clip: bound of the noise after scaling; None for no bound.

    Returns:
        (..., A). The outer clamp is straight-through: the gradient for the mean is 1 everywhere.
    """
    scaled = std * noise
    drawn = mean + (scaled if clip is None else scaled.clamp(-clip, clip))
    return drawn - drawn.detach() + drawn.detach().clamp(-ACTION_LIMIT, ACTION_LIMIT)


def normal_log_prob(value: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Log-density (..., A) of the normal that is *not* truncated, as the released code logs it."""
    scale = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
    return -((value - mean) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)


def normal_entropy(std: float | Tensor) -> Tensor:
    """Entropy of that normal for each dimension, in nats; shape of `std`."""
    return torch.as_tensor(std).log() + 0.5 * (1 + math.log(2 * math.pi))
