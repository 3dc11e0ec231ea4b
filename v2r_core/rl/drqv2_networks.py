"""The networks of DrQ-v2 (Yarats et al., ICLR 2022, appendix B): encoder, actor, twin critics."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from v2r_core.rl.drqv2_recipe import DrQv2Recipe

CHUNK = 32
"""Images that the CPU encodes together: their activations stay in its caches."""


class PixelEncoder(nn.Module):
    """Four 3x3 convolutions, the first of stride 2 (appendix B).

    Args:
        channels_in: 3 K.
        size: side S of the images in pixels.
        channels: outputs of each convolution.

    Shape:
        uint8 (N, 3 K, S, S) to float32 (N, F), channel first; F is `features`, 39200 for 84 pixels.

    Raises:
        ValueError: images that are too small.
    """

    def __init__(self, channels_in: int, size: int, channels: int) -> None:
        super().__init__()
        side = (size - 3) // 2 + 1 - 6
        if side < 1:
            raise ValueError(f"images of {size} pixels are too small for the encoder, at least 15 expected")
        layers: list[nn.Module] = []
        for inputs, stride in ((channels_in, 2), (channels, 1), (channels, 1), (channels, 1)):
            layers += [nn.Conv2d(inputs, channels, 3, stride), nn.ReLU(inplace=True)]
        self.convnet = nn.Sequential(*layers)
        self.features = channels * side**2

    def forward(self, observation: Tensor) -> Tensor:
        """Features of images."""
        return self.convnet((observation.float() / 255).sub_(0.5)).flatten(1)


class EmbeddingEncoder(nn.Module):
    """Nothing to learn: float (N, K * D) as it is, in float32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, observation: Tensor) -> Tensor:
        """The embeddings."""
        return observation.float()


def encode(encoder: PixelEncoder | EmbeddingEncoder, observation: Tensor) -> Tensor:
    """The encoder's features, with less work for a CPU: channels last, and a few images at a time.

    The numbers are those of `encoder(observation)` up to rounding.
    """
    if isinstance(encoder, EmbeddingEncoder) or observation.device.type != "cpu":
        return encoder(observation)
    parts = (part.float().contiguous(memory_format=torch.channels_last) for part in observation.split(CHUNK))
    return torch.cat([encoder(part) for part in parts])


class Actor(nn.Module):
    """From features (N, F) to mean actions (N, A) in [-1, 1]."""

    def __init__(self, features: int, action_dim: int, recipe: DrQv2Recipe) -> None:
        super().__init__()
        self.trunk = _trunk(features, recipe.feature_dim)
        self.policy = _mlp(recipe.feature_dim, action_dim, recipe)

    def forward(self, features: Tensor) -> Tensor:
        """Mean actions."""
        return torch.tanh(self.policy(self.trunk(features)))


class Critic(nn.Module):
    """Two values (N, 1) each of features (N, F) and actions (N, A); the trunk is shared by both."""

    def __init__(self, features: int, action_dim: int, recipe: DrQv2Recipe) -> None:
        super().__init__()
        self.trunk = _trunk(features, recipe.feature_dim)
        self.Q1 = _mlp(recipe.feature_dim + action_dim, 1, recipe)
        self.Q2 = _mlp(recipe.feature_dim + action_dim, 1, recipe)

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both values."""
        return self.values(self.trunk(features), action)

    def values(self, trunk: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both values from what the trunk says, (N, feature_dim)."""
        joined = torch.cat([trunk, action], dim=-1)
        return self.Q1(joined), self.Q2(joined)


class Networks(nn.Module):
    """Encoder, actor, critic and target critic; the state dict has the released keys, module by module.

    Args:
        recipe: the settings.
        observation: shape of one frame, (3, S, S) or (D,).
        action_dim: A.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, recipe: DrQv2Recipe, observation: tuple[int, ...], action_dim: int) -> None:
        super().__init__()
        self.encoder: PixelEncoder | EmbeddingEncoder
        if len(observation) == 1:
            self.encoder = EmbeddingEncoder(recipe.frame_stack * observation[0])
        elif len(observation) == 3 and observation[1] == observation[2]:
            self.encoder = PixelEncoder(recipe.frame_stack * observation[0], observation[1], recipe.channels)
        else:
            raise ValueError(f"frames are {observation}, (3, S, S) pixels or a (D,) embedding expected")
        self.actor = Actor(self.encoder.features, action_dim, recipe)
        self.critic = Critic(self.encoder.features, action_dim, recipe)
        self.apply(_initialise)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)


class PolicyNetwork(nn.Module):
    """What acts on a robot.

    Shape:
        `observation`: uint8 (N, 3 K, S, S), or float32 (N, K * D), oldest frame first; to float32 (N, A) in [-1, 1].
    """

    def __init__(self, encoder: nn.Module, actor: Actor) -> None:
        super().__init__()
        self.encoder = encoder
        self.actor = actor

    def forward(self, observation: Tensor) -> Tensor:
        """Mean actions."""
        return self.actor(self.encoder(observation))


def _trunk(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.Tanh())


def _mlp(inputs: int, outputs: int, recipe: DrQv2Recipe) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, recipe.hidden_dim):
        layers.append(nn.Linear(width, recipe.hidden_dim))
        if recipe.layer_norm:
            layers.append(nn.LayerNorm(recipe.hidden_dim))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(recipe.hidden_dim, outputs))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight, math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
