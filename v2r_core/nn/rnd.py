"""Random network distillation (Burda et al. 2019), as Diffusion Reward adds it for exploration (section 4.3).

A network learns to predict what a fixed random one makes of a frame. Where it fails, the frame is new.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 512
_KERNELS = ((3, 32, 6, 3), (32, 64, 4, 2), (64, 64, 3, 1))
"""Inputs, outputs, side and stride of the convolutions."""

Number = TypeVar("Number", float, Tensor)


class RandomNetworkDistillation(nn.Module):
    """Target and predictor, under the released state-dict keys.

    Args:
        size: side of the frames in pixels, at least 32; the paper's is 64.

    Raises:
        ValueError: frames that are too small for the convolutions.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        side = size
        for _, _, kernel, stride in _KERNELS:
            side = (side - kernel) // stride + 1
        if side < 1:
            raise ValueError(f"frames of {size} pixels are too small for the convolutions; use 32 at least")
        self.size = size
        width = _KERNELS[-1][1] * side**2
        self.target = nn.Sequential(*_convolutions(), nn.Linear(width, FEATURES)).requires_grad_(False)
        self.predictor = nn.Sequential(
            *_convolutions(),
            nn.Linear(width, FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, FEATURES),
        )
        self.apply(_initialise)

    def features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What the predictor says and what the target is.

        Args:
            frames: uint8 RGB (N, S, S, 3).

        Returns:
            float32 (N, 512) each; gradients go to the predictor only.

        Raises:
            ValueError: another dtype or shape.
        """
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != (self.size, self.size, 3):
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, uint8 (N, {self.size}, {self.size}, 3) expected"
            )
        images = frames.permute(0, 3, 1, 2).float() / 255 - 0.5
        with torch.no_grad():
            target = self.target(images)
        return self.predictor(images), target

    @torch.no_grad()
    def reward(self, frames: Tensor) -> Tensor:
        """How new frames are: half the squared distance of predictor and target.

        Args:
            frames: uint8 RGB (N, S, S, 3).

        Returns:
            float32 (N,), at least 0, without any normalisation.
        """
        predicted, target = self.features(frames)
        return 0.5 * (predicted - target).square().sum(dim=1)

    def loss(self, frames: Tensor) -> Tensor:
        """Mean squared difference over all features of frames, uint8 (N, S, S, 3): a scalar with gradient."""
        return functional.mse_loss(*self.features(frames))

    def update(self, frames: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """One step on frames, uint8 RGB (N, S, S, 3).

        Args:
            frames: the batch.
            optimizer: of the predictor's parameters; the paper's is Adam at 1e-4.

        Returns:
            The loss before the step.
        """
        loss = self.loss(frames)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())


def mixed_reward(standardised: Number, sparse: Number, alpha: float) -> Number:
    """What Diffusion Reward's agent is paid by the task (section 4.3): (1 - alpha) * standardised + sparse.

    Read alpha with care: it weights exploration. The paper's 0.95 leaves the diffusion reward a weight of **0.05**
    beside 0.95 of the novelty, see `exploration_reward`, and 1 of the sparse reward.

    Args:
        standardised: diffusion reward, its mean subtracted and divided by its standard deviation.
        sparse: reward of the environment.
        alpha: in [0, 1].

    Raises:
        ValueError: alpha out of range.
    """
    return (1 - _weight(alpha)) * standardised + sparse


def exploration_reward(reward: Number, novelty: Number, alpha: float) -> Number:
    """`mixed_reward` plus alpha * novelty. The released code adds it when a batch is drawn, to the n-step reward.

    Args:
        reward: see `mixed_reward`.
        novelty: of the observation after the step, see `RandomNetworkDistillation.reward`.
        alpha: in [0, 1].

    Raises:
        ValueError: alpha out of range.
    """
    return reward + _weight(alpha) * novelty


def _weight(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, a number from 0 to 1 expected")
    return alpha


def _convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in _KERNELS:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.LeakyReLU()]
    return [*layers, nn.Flatten()]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight, math.sqrt(2))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
