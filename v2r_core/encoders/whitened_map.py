"""A small embedding that still says where things are: the map of a convolutional network, whitened and shortened.

An averaged embedding tells what there is in a frame; a policy must know where. The map of a middle layer knows, but has
thousands of numbers that hang together. Principal components of it, each divided by its deviation over the robot's own
frames, leave what varies there (Parisi et al. 2022 found early maps best for control). No network is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder


class FeatureMap(nn.Module):
    """An image network of timm up to the last layer that has a given stride, its map flattened.

    Args:
        network: the network.
        stride: pixels of the image for a position of the map, e.g. 16.

    Raises:
        ValueError: no such map in this network; those that there are are named.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        info = getattr(network, "feature_info", None)
        if info is None or not hasattr(network, "forward_intermediates"):
            raise ValueError(f"{type(network).__name__} has no maps to take; use a convolutional network of timm")
        strides = [entry["reduction"] for entry in info]
        if stride not in strides:
            raise ValueError(f"no map of stride {stride}; this network has strides {sorted(set(strides))}")
        self.network = network
        self.index = len(strides) - 1 - strides[::-1].index(stride)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) to (N, C * S / stride * S / stride), channel by channel."""
        forward_intermediates = cast(Callable[..., list[Tensor]], self.network.forward_intermediates)
        (found,) = forward_intermediates(images, indices=[self.index], stop_early=True, intermediates_only=True)
        return found.flatten(1)


def whitened_map(
    encoder: Encoder, frames: Iterable[NDArray[np.uint8]], *, stride: int = 16, dim: int = 128, seed: int = 0
) -> Encoder:
    """Fits principal components to a network's map.

    Args:
        encoder: whose backbone is an image network of timm.
        frames: batches of prepared frames, uint8 RGB (N, S, S, 3), that show what the robot will see: demonstrations,
            and failures too where there are some.
        stride: which map, see `FeatureMap`.
        dim: components that are kept.
        seed: of the randomised decomposition.

    Returns:
        An encoder from the same frames to float32 (N, dim), each component with mean 0 and variance 1 on these frames.

    Raises:
        ValueError: no such map, or fewer frames than components.
    """
    flat = Encoder(encoder.name, FeatureMap(encoder.backbone, stride), encoder.preprocess, 1, encoder.weights).eval()
    with torch.inference_mode():
        maps = np.concatenate([flat(torch.from_numpy(batch)).numpy() for batch in frames])
    if len(maps) <= dim:
        raise ValueError(f"{len(maps)} frames for {dim} components; give more frames, or a smaller dim")
    fitted = PCA(dim, whiten=True, svd_solver="randomized", random_state=seed).fit(maps)
    project = nn.Linear(maps.shape[1], dim)
    weight = fitted.components_ / np.sqrt(fitted.explained_variance_)[:, None]
    with torch.no_grad():
        project.weight.copy_(torch.from_numpy(weight))
        project.bias.copy_(torch.from_numpy(-weight @ fitted.mean_))
    return Encoder(
        f"{encoder.name}-map{stride}-{dim}",
        nn.Sequential(flat.backbone, project).requires_grad_(False),
        encoder.preprocess,
        dim,
        dataclasses.replace(
            encoder.weights, source=f"{encoder.weights.source}; {dim} components of {len(maps)} frames"
        ),
    ).eval()
