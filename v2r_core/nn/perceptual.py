"""Perceptual distance: how far two images are apart for a network that was trained to see (Zhang et al. 2018, LPIPS).

Feature maps of several stages are normalised to unit length at every place; their squared differences are weighted
channel by channel and averaged over the places. With VGG16 and the weights of LPIPS this is LPIPS; with any other
network, or without such weights, all channels count alike and the stages are averaged: 2 (1 - cosine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

EPS = 1e-10
VGG16_LAYERS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage."""


class VGG16Stages(nn.Module):
    """The convolutions of VGG16 under torchvision's keys: images (N, 3, H, W) to what its five stages end with."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        inputs = 3
        for stage, (outputs, count) in enumerate(VGG16_LAYERS):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W), H and W at least 16, to five feature maps."""
        found, values = [], images
        for number, layer in enumerate(self.features):
            values = layer(values)
            if number in self._ends:
                found.append(values)
        return found


class BackboneStages(nn.Module):
    """The feature maps of all stages of a network of timm.

    Args:
        backbone: any that has `forward_intermediates`.

    Raises:
        ValueError: it has not.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise ValueError(
                f"{type(backbone).__name__} does not show its stages; take efficientnet_lite0, timm:<model> or vgg16"
            )
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to one feature map a stage, (N, C, h, w)."""
        inner = cast(Any, self.backbone)
        found: list[Tensor] = inner.forward_intermediates(images, intermediates_only=True)
        return found


class PerceptualDistance(nn.Module):
    """The distance; its network is not trained, and stays in evaluation mode.

    Args:
        stages: normalised images to feature maps (N, C, h, w).
        mean: of the images that the network was trained on, on the [0, 1] scale.
        std: their standard deviation.
        channels: of each stage, where channels shall have weights; these are 1 until they are loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, stages: nn.Module, mean: Sequence[float], std: Sequence[float], channels: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.stages = stages
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(count)) for count in channels])
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [-1, 1], twice, to their distances, (N,)."""
        # One pass for both: a network in evaluation mode treats every image by itself.
        maps = self.stages(((torch.cat([first, second]) + 1) / 2 - self.mean) / self.std)
        distances = []
        for number, both in enumerate(maps):
            one, other = _unit(both.float()).chunk(2)
            squares = (one - other).square()
            if len(self.weights):
                squares = squares * self.weights[number][None, :, None, None]
            distances.append(squares.sum(dim=1).mean(dim=(1, 2)))
        stacked = torch.stack(distances)
        return stacked.sum(dim=0) if len(self.weights) else stacked.mean(dim=0)

    def load_channel_weights(self, state: Mapping[str, Tensor], where: str) -> None:
        """Takes the weights of LPIPS: `lin<stage>.model.1.weight`, (1, C, 1, 1).

        Raises:
            ValueError: one is missing or has another shape.
        """
        for number, own in enumerate(self.weights):
            key = f"lin{number}.model.1.weight"
            found = state.get(key)
            if found is None or found.numel() != own.numel():
                shape = "missing" if found is None else tuple(found.shape)
                raise ValueError(
                    f"{where}: {key} is {shape}, (1, {own.numel()}, 1, 1) expected; is it LPIPS for VGG16?"
                )
            own.data.copy_(found.flatten())


def _unit(values: Tensor) -> Tensor:
    # A square root would have no gradient where all channels are 0.
    return values / (torch.linalg.vector_norm(values, dim=1, keepdim=True) + EPS)
