"""VQ-GAN (van den Oord et al. 2017; Esser et al. 2021): frames as a grid of entries of a table of code vectors.

What every VQ-GAN here shares. The networks that differ are in `viper_vqgan.py` and `taming_vqgan.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class VQGAN(nn.Module):
    """An encoder, a table of codes, a decoder, and the two 1x1 convolutions around the table.

    Images are float32 (N, 3, S, S) in [-1, 1]; latents are (N, z, h, w) with h = w = `grid`.

    Args:
        encoder: images to (N, z, h, w).
        decoder: (N, z, h, w) to images; its output convolution must be the last one among its modules.
        size: side of the images in pixels, S.
        grid: side of the latents, h.
        codes: entries of the table, K.
        dim: channels of the latents and length of a code vector, z.
        commitment: weight of the term that pulls latents to their codes.
        pull: weight of the term that pulls codes to their latents. VIPER has commitment 0.25 and pull 1, Diffusion
            Reward, as the first release of taming-transformers, commitment 1 and pull 0.25.

    Attributes:
        codebook: the code vectors, float32 (K, z).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        size: int,
        grid: int,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        pull: float = 1.0,
    ) -> None:
        super().__init__()
        self.size = size
        self.grid = grid
        self.commitment = commitment
        self.pull = pull
        self.encoder = encoder
        self.quant_conv = nn.Conv2d(dim, dim, 1)
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))
        self.post_quant_conv = nn.Conv2d(dim, dim, 1)
        self.decoder = decoder

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's output convolution, where Diffusion Reward compares gradients."""
        weight = [module for module in self.decoder.modules() if isinstance(module, nn.Conv2d)][-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [-1, 1] to latents before quantisation, (N, z, h, w)."""
        latents: Tensor = self.quant_conv(self.encoder(images))
        return latents

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Replaces each latent by the nearest code.

        Args:
            latents: (N, z, h, w).

        Returns:
            codes, int64 (N, h * w), row-major; quantised latents, float32 (N, z, h, w), whose gradient goes to
            `latents` unchanged; and the loss of the table, a scalar.
        """
        latents = latents.float()
        rows = latents.permute(0, 2, 3, 1)
        codes = nearest_codes(rows.flatten(0, 2), self.codebook)
        chosen = functional.embedding(codes, self.codebook).reshape(rows.shape).permute(0, 3, 1, 2)
        commit, table = quantization_errors(latents, chosen)
        quantized = latents + (chosen - latents).detach()
        return codes.reshape(len(latents), -1), quantized, self.commitment * commit + self.pull * table

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantised latents (N, z, h, w) to images (N, 3, S, S), about [-1, 1] but not limited to it."""
        images: Tensor = self.decoder(self.post_quant_conv(quantized))
        return images

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes, int64 (N, h * w), row-major, to images (N, 3, S, S)."""
        vectors = functional.embedding(codes, self.codebook)
        return self.decode(vectors.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, S, S) to reconstructions (N, 3, S, S), codes, int64 (N, h * w), and the loss of the table."""
        codes, quantized, loss = self.quantize(self.encode(images))
        return self.decode(quantized), codes, loss


class Down(nn.Module):
    """Half the side: a strided convolution, with zeros on the right and at the bottom (TensorFlow's SAME)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / 2, W / 2)."""
        halved: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return halved


class Up(nn.Module):
    """Twice the side: every pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2 H, 2 W)."""
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each vector by squared Euclidean distance; the first of equal ones.

    Args:
        vectors: (M, z).
        codebook: (K, z).

    Returns:
        int64 (M,).
    """
    with torch.no_grad():
        # |v|^2 is the same for all codes of a vector.
        scores = codebook.square().sum(dim=1) - 2 * vectors @ codebook.T
        return scores.argmin(dim=1)


def quantization_errors(latents: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the table's loss (van den Oord et al. 2017, equation 3): equal values, different gradients.

    Args:
        latents: (N, z, h, w).
        chosen: their codes, (N, z, h, w).

    Returns:
        Mean squared difference, with gradient for `latents` only (commitment), and for `chosen` only.
    """
    return functional.mse_loss(latents, chosen.detach()), functional.mse_loss(chosen, latents.detach())


def perplexity(codes: Tensor, count: int) -> Tensor:
    """exp of the entropy of how often codes occur: `count` if all are used alike, 1 if only one is.

    Args:
        codes: int64, any shape.
        count: entries of the table.

    Returns:
        scalar, float32.
    """
    share = torch.bincount(codes.flatten(), minlength=count).float() / codes.numel()
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())


def quantization_rms(latents: Tensor, quantized: Tensor) -> Tensor:
    """Root mean square distance of a frame's latents to their codes: latents and codes (N, z, h, w) to (N,)."""
    return (latents - quantized).square().mean(dim=(1, 2, 3)).sqrt()
