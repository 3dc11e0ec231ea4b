"""The VQ-GAN of Diffusion Reward (Huang et al., ECCV 2024), after Esser et al. 2021, with its released keys.

    images (N, 3, S, S) in [-1, 1] -> encoder -> quant_conv -> nearest code -> post_quant_conv -> decoder -> images

Modules are numbered in the order in which they were built, as the released keys have it. The attention blocks have an
output convolution `proj_out` that the released forward pass does not use; it is here for its keys, and unused too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.vqgan import VQGAN, Down, Up

GROUPS = 32
GROUP_NORM_EPS = 1e-6
RELEASED_CODEBOOK = "codebook.embedding.weight"
"""Key of the code vectors, which are a module of their own in the released code."""


@dataclass(frozen=True, kw_only=True)
class TamingConfig:
    """Sizes of the network.

    Attributes:
        size: side of the image S in pixels.
        channels: of the stem and of each level, all multiples of 32; one level less than entries.
        residual_blocks: of each level of encoder and decoder.
        attention_resolutions: sides at which a level's residual blocks are followed by attention.
        grid: side of the token grid; S is halved until it is reached.
        latent: channels Z of a latent and of a code.
        codes: entries K of the codebook.
        beta: weight of one of the two terms of the code loss.
        compat: which of them, see `TamingVQGAN`.

    Raises:
        ValueError: sizes that do not fit together.
    """

    size: int = 64
    channels: tuple[int, ...] = (128, 128, 256, 256)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    grid: int = 8
    latent: int = 64
    codes: int = 1024
    beta: float = 0.25
    compat: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        for name in ("size", "residual_blocks", "grid", "latent", "codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if len(self.channels) < 2 or any(width < 1 or width % GROUPS for width in self.channels):
            raise ValueError(f"channels are {self.channels}, two or more multiples of {GROUPS} expected")
        halvings = math.log2(self.size / self.grid)
        if halvings != int(halvings) or not 0 <= halvings < len(self.channels):
            raise ValueError(
                f"size {self.size} does not come to a grid of {self.grid} by halving it at most "
                f"{len(self.channels) - 1} times (one less than channels); change size, grid or channels"
            )

    @property
    def tokens(self) -> int:
        """Tokens of a frame, grid x grid, row-major."""
        return self.grid**2


class GroupNorm(nn.Module):
    """Group normalisation, 32 groups, under the key `gn`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(GROUPS, width, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        normed: Tensor = self.gn(x)
        return normed


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            GroupNorm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            GroupNorm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        if inputs != outputs:
            self.channel_up = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        shortcut = self.channel_up(x) if hasattr(self, "channel_up") else x
        added: Tensor = shortcut + self.block(x)
        return added


class SpatialAttention(nn.Module):
    """One head of attention over all places; what it finds is added as it is, without `proj_out`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gn = GroupNorm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        # No gradient ever reaches it, which processes that train together would wait for.
        self.proj_out = nn.Conv2d(width, width, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        normed = self.gn(x)
        # One head has an axis of its own, without which the exporter to ONNX does not know attention.
        query, key, value = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        found = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + found.transpose(1, 2).reshape(x.shape)


class Encoder(nn.Module):
    """Images to latents before `quant_conv`."""

    def __init__(self, config: TamingConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, config.channels[0], 3, padding=1)]
        side = config.size
        for before, after in zip(config.channels, config.channels[1:], strict=False):
            layers += _level(before, after, side, config)
            if side > config.grid:
                layers.append(Down(after))
                side //= 2
        last = config.channels[-1]
        layers += [ResidualBlock(last, last), SpatialAttention(last), ResidualBlock(last, last)]
        layers += [GroupNorm(last), nn.SiLU(), nn.Conv2d(last, config.latent, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, Z, grid, grid)."""
        latents: Tensor = self.model(images)
        return latents


class Decoder(nn.Module):
    """Latents behind `post_quant_conv` to images."""

    def __init__(self, config: TamingConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent, width, 3, padding=1)]
        layers += [ResidualBlock(width, width), SpatialAttention(width), ResidualBlock(width, width)]
        side = config.grid
        for after in reversed(config.channels):
            layers += _level(width, after, side, config)
            width = after
            if side < config.size:
                layers.append(Up(width))
                side *= 2
        layers += [GroupNorm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, Z, grid, grid) to (N, 3, S, S)."""
        images: Tensor = self.model(latents)
        return images


class TamingVQGAN(VQGAN):
    """The whole network; see `VQGAN` for what it does.

    The released code weights the term that pulls codes to latents by beta and the one that pulls latents to codes by 1
    (`compat` official); papers of VQ networks have it the other way round.

    Args:
        config: its sizes.
    """

    def __init__(self, config: TamingConfig) -> None:
        official = config.compat == "official"
        super().__init__(
            Encoder(config),
            Decoder(config),
            size=config.size,
            grid=config.grid,
            codes=config.codes,
            dim=config.latent,
            commitment=1.0 if official else config.beta,
            pull=config.beta if official else 1.0,
        )
        self.config = config
        self.register_state_dict_post_hook(_to_released)
        self.register_load_state_dict_pre_hook(_from_released)


def _to_released(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[prefix + RELEASED_CODEBOOK] = state.pop(f"{prefix}codebook")


def _from_released(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    if prefix + RELEASED_CODEBOOK in state:
        state[f"{prefix}codebook"] = state.pop(prefix + RELEASED_CODEBOOK)


def _level(before: int, after: int, side: int, config: TamingConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = before
    for _ in range(config.residual_blocks):
        layers.append(ResidualBlock(width, after))
        width = after
        if side in config.attention_resolutions:
            layers.append(SpatialAttention(width))
    return layers
