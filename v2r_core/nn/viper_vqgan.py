"""The VQ-GAN of VIPER (Escontrela et al., NeurIPS 2023, section 3.1 and appendix on training).

One residual block a level in the encoder, two in the decoder; attention in the middle only, with an output projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.vqgan import VQGAN, Down, Up

GROUPS = 32
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViperVQGANConfig:
    """Sizes of the network.

    Attributes:
        size: side of the images in pixels, S.
        channels: of each level, from the images on; between two levels the side is halved.
        dim: channels of the latents and length of a code vector, z.
        codes: entries of the table, K.
        beta: weight of the commitment.

    Raises:
        ValueError: sizes that do not fit together.
    """

    size: int = 64
    channels: tuple[int, ...] = (128, 256, 256, 256)
    dim: int = 64
    codes: int = 256
    beta: float = 0.25

    def __post_init__(self) -> None:
        for name in ("size", "dim", "codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if not self.channels or any(width < 1 or width % groups_of(width) for width in self.channels):
            raise ValueError(f"channels are {self.channels}; multiples of {GROUPS}, or less than that, expected")
        if self.size % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"size {self.size} cannot be halved {len(self.channels) - 1} times (one less than channels); "
                "change size or channels"
            )

    @property
    def grid(self) -> int:
        """Side of the latents."""
        return self.size // 2 ** (len(self.channels) - 1)


def viper_vqgan(config: ViperVQGANConfig) -> VQGAN:
    """The whole network, with fresh weights."""
    return VQGAN(
        Encoder(config.channels, config.dim),
        Decoder(config.channels, config.dim),
        size=config.size,
        grid=config.grid,
        codes=config.codes,
        dim=config.dim,
        commitment=config.beta,
    )


class Encoder(nn.Module):
    """Images to latents, before `quant_conv`; `layers` are in the order of the released network.

    Args:
        channels: of each level.
        dim: channels of the latents.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3(3, channels[0]), ResidualBlock(channels[0], channels[0])]
        for inputs, outputs in pairwise(channels):
            layers += [Down(inputs), ResidualBlock(inputs, outputs)]
        self.layers = nn.Sequential(*layers, *_middle(channels[-1]), *_head(channels[-1], dim))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, z, h, w)."""
        latents: Tensor = self.layers(images)
        return latents


class Decoder(nn.Module):
    """Latents behind `post_quant_conv` to images; `layers` are in the order of the released network.

    Args:
        channels: of each level, from the images on.
        dim: channels of the latents.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        top = channels[-1]
        layers: list[nn.Module] = [conv3(dim, top), *_middle(top), ResidualBlock(top, top), ResidualBlock(top, top)]
        for outputs, inputs in reversed(list(pairwise(channels))):
            layers += [Up(inputs), ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)]
        self.layers = nn.Sequential(*layers, *_head(channels[0], 3))

    def forward(self, latents: Tensor) -> Tensor:
        """(N, z, h, w) to (N, 3, S, S)."""
        images: Tensor = self.layers(latents)
        return images


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, beside a shortcut, which is a 1x1 convolution where the widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv3(inputs, outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = conv3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        total: Tensor = self.shortcut(x) + hidden
        return total


class SpatialAttention(nn.Module):
    """One head of attention over all places, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        normed = self.norm(x)
        # With an axis for the one head, which the exporter to ONNX needs.
        parts = [part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.query, self.key, self.value)]
        found = functional.scaled_dot_product_attention(*parts)[:, 0]
        total: Tensor = x + self.out(found.transpose(1, 2).reshape(x.shape))
        return total


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the side."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def groups_of(width: int) -> int:
    """Groups that channels are normalised in: 32, or one a channel where there are fewer (small networks only)."""
    return min(GROUPS, width)


def group_norm(width: int) -> nn.GroupNorm:
    """Group normalisation as the release has it."""
    return nn.GroupNorm(groups_of(width), width, eps=EPS)


def _middle(width: int) -> list[nn.Module]:
    return [ResidualBlock(width, width), SpatialAttention(width), ResidualBlock(width, width)]


def _head(width: int, outputs: int) -> list[nn.Module]:
    return [group_norm(width), nn.SiLU(), conv3(width, outputs)]
