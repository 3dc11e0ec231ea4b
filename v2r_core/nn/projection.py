"""Heads of the contrastive methods: what stands between the representation and the loss."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.batch_norm import GlobalBatchNorm


def moco_head(version: Literal["v1", "v2"], width: int, dim: int) -> nn.Module:
    """MoCo's `fc`: a linear layer in version 1, one hidden layer as wide as the input in version 2; no batch norm.

    Args:
        version: of MoCo.
        width: channels of the representation.
        dim: channels of a key.
    """
    if version == "v1":
        return nn.Linear(width, dim)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))


def mocov3_head(layers: int, width: int, hidden: int, dim: int, last_norm: bool = True) -> nn.Sequential:
    """MoCo v3's projector (three layers for a ViT, two for a ResNet) or predictor (two).

    Linear layers have no bias. Hidden layers have a batch norm and ReLU, the output a batch norm without scale and
    offset. Indices are those of the released checkpoints.

    Args:
        layers: number of linear layers.
        width: channels of the input.
        hidden: channels of hidden layers.
        dim: channels of the output.
        last_norm: normalise the output; False for the predictor of a ResNet.
    """
    parts: list[nn.Module] = []
    for number in range(layers):
        last = number == layers - 1
        channels = dim if last else hidden
        parts.append(nn.Linear(width if number == 0 else hidden, channels, bias=False))
        if not last:
            parts += [GlobalBatchNorm(channels), nn.ReLU()]
        elif last_norm:
            parts.append(GlobalBatchNorm(channels, affine=False))
    return nn.Sequential(*parts)


class ProjectionLayer(nn.Module):
    """A linear layer without bias and a batch norm; all but the last layer of a head have an offset and ReLU."""

    def __init__(self, width: int, dim: int, last: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width, dim, bias=False)
        self.norm = GlobalBatchNorm(dim, offset=not last, population=True)
        self.last = last
        nn.init.normal_(self.dense.weight, std=0.01)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, width) to (N, dim)."""
        values = self.norm(self.dense(values))
        return values if self.last else functional.relu(values)


class ProjectionHead(nn.Module):
    """SimCLR's head: two layers in the first paper, three in the second. Hidden layers are as wide as the input.

    Args:
        width: channels of the representation.
        dim: channels of the output.
        layers: number of layers; 1 is a linear head, 0 hands the representation through.
    """

    def __init__(self, width: int, dim: int = 128, layers: int = 2) -> None:
        super().__init__()
        if layers < 0:
            raise ValueError(f"a head of {layers} layers; 0 or more expected")
        self.dim = dim if layers else width
        self.layers = nn.ModuleList(
            ProjectionLayer(width, dim if number == layers - 1 else width, last=number == layers - 1)
            for number in range(layers)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Representations (N, width) to (N, dim)."""
        return self.hiddens(values)[-1]

    def hiddens(self, values: Tensor) -> list[Tensor]:
        """Input and output of every layer: index 1 is the first layer after its ReLU, SimCLRv2's place to fine-tune."""
        outputs = [values]
        for layer in cast(list[ProjectionLayer], list(self.layers)):
            outputs.append(layer(outputs[-1]))
        return outputs
