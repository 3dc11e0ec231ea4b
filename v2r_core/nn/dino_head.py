"""DINO's projection head: an MLP, a point on the sphere, and cosines with prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.vit import init_weights


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are given by length and direction, `weight_g` and `weight_v`.

    Args:
        width: channels of a row.
        count: number of rows K.
        frozen_length: keep all lengths at 1.
    """

    def __init__(self, width: int, count: int, frozen_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not frozen_length)
        self.weight_v = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())

    def forward(self, points: Tensor) -> Tensor:
        """Points (N, width) to logits (N, K)."""
        return functional.linear(points, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DinoHead(nn.Module):
    """The head of DINO (section 3.1, "Network architecture") and DINOv2, under the names of the released checkpoints.

    Three linear layers with GELU between them, L2 normalisation, prototypes. No batch norm.

    Args:
        width: channels D of a feature.
        prototypes: number of outputs K.
        hidden: channels between the layers.
        bottleneck: channels of the point on the sphere.
        frozen_length: prototypes have length 1 for ever (DINO's `norm_last_layer`); DINOv2 learns the lengths.
    """

    def __init__(
        self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, frozen_length: bool = False
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        init_weights(self.mlp)
        self.last_layer = Prototypes(bottleneck, prototypes, frozen_length)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) to logits (N, K)."""
        points = self.mlp(features)
        # Half precision has no 1e-12.
        points = functional.normalize(points, dim=-1, eps=1e-6 if points.dtype == torch.float16 else 1e-12)
        return self.last_layer(points)

    def parts(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Several sets of features (N_i, D) to their logits (N_i, K), in one pass: the prototypes are read once."""
        return self(torch.cat(list(features))).split([len(part) for part in features])
