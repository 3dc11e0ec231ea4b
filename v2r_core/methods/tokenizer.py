"""What methods on top of a VQ-GAN share: frames as codes, the robot's encoder, and when a frame is unfamiliar."""

from __future__ import annotations

import hashlib
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import FrozenPart, Horizon, Method, Recipe
from v2r_core.nn.ema import copy_for_ema
from v2r_core.nn.vqgan import VQGAN, quantization_rms
from v2r_core.video.resize import Preprocess

OUTLIER_DEVIATIONS = 6.0
"""Standard deviations above the mean distance of training frames from which on a frame is out of distribution."""


class CodesMethod(Method):
    """A model of the codes of a VQ-GAN, which stays as it is.

    Args:
        recipe: the settings.
        horizon: how long the training is.
        tokenizer: the VQ-GAN.
        model: what is trained, and averaged.
    """

    def __init__(self, recipe: Recipe, horizon: Horizon, tokenizer: VQGAN, model: nn.Module) -> None:
        super().__init__(recipe, horizon)
        self.tokenizer = tokenizer.requires_grad_(False)
        self.model = model
        self.average = copy_for_ema(model)
        self.distances = DistanceMoments()
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Tokenizer and average stay in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        self.average.eval()
        return self

    def frozen(self) -> FrozenPart:
        """The tokenizer: a frame becomes its codes and their distance, see `token_rows`; `split_rows` parts them."""
        return frozen_tokenizer(self.tokenizer)

    def draw_codes(self, codes: Tensor) -> NDArray[np.uint8]:
        """Codes (R, T, L) as the tokenizer draws them: R rows of T frames, uint8 RGB (S * R, S * T, 3)."""
        images = to_levels(self.tokenizer.decode_codes(codes.flatten(0, 1))).unflatten(0, codes.shape[:2])
        return images.transpose(1, 2).flatten(2, 3).flatten(0, 1).cpu().numpy()

    def code_tensors(self) -> dict[str, NDArray[Any]]:
        """What a reward needs to find the codes of a frame, and to tell a frame that has none that fit.

        Raises:
            ValueError: not trained yet.
        """
        return {
            "codebook": self.tokenizer.codebook.detach().cpu().numpy(),
            "quantization_threshold": np.array(self.distances.threshold, np.float32),
        }


class FlatLatents(nn.Module):
    """The encoder of a VQ-GAN as an embedding, sharing its weights.

    Args:
        tokenizer: the VQ-GAN.
    """

    def __init__(self, tokenizer: VQGAN) -> None:
        super().__init__()
        self.encoder = tokenizer.encoder
        self.quant_conv = tokenizer.quant_conv

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [-1, 1] to latents before quantisation, (N, h * w * z), row-major, z fastest."""
        # On channels-last tensors torch's group norm takes the variance as E[x^2] - E[x]^2: 1e-4 off on a blank wall.
        latents: Tensor = self.quant_conv(self.encoder(images.contiguous()))
        return latents.permute(0, 2, 3, 1).flatten(1)


class DistanceMoments(nn.Module):
    """How far training frames are from their codes: number, sum and sum of squares."""

    moments: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64))

    @torch.no_grad()
    def add(self, distances: Tensor) -> None:
        """Adds distances, any shape."""
        values = distances.flatten().double()
        self.moments += torch.stack([torch.ones_like(values), values, values.square()]).sum(dim=1)

    @property
    def threshold(self) -> float:
        """Mean and 6 standard deviations.

        Raises:
            ValueError: nothing was added yet.
        """
        count, total, squares = self.moments.tolist()
        if not count:
            raise ValueError("no frame was trained on yet, so there is no quantization threshold; train first")
        mean = total / count
        return float(mean + OUTLIER_DEVIATIONS * max(squares / count - mean**2, 0.0) ** 0.5)


def latent_encoder(tokenizer: VQGAN, name: str, source: str) -> Encoder:
    """Frames to latents before quantisation, (N, h * w * z); the host looks for the codes.

    Args:
        tokenizer: the VQ-GAN, whose weights are shared.
        name: identifier of the encoder.
        source: where its weights are from.
    """
    width = tokenizer.grid**2 * tokenizer.codebook.shape[1]
    info = WeightsInfo(source=source, license="as its training videos allow")
    return Encoder(name, FlatLatents(tokenizer), Preprocess(size=tokenizer.size), width, info).eval()


def frozen_tokenizer(tokenizer: VQGAN) -> FrozenPart:
    """A tokenizer as what never changes: each frame becomes a row of `token_rows`; the name tells the weights."""
    digest = hashlib.sha256()
    for value in tokenizer.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())

    def apply(frames: Tensor) -> Tensor:
        return token_rows(tokenizer, frames)

    return FrozenPart(f"vqgan {digest.hexdigest()[:16]}", Preprocess(size=tokenizer.size), apply)


@torch.no_grad()
def token_rows(tokenizer: VQGAN, frames: Tensor) -> Tensor:
    """Codes of frames and how far their latents are from them.

    Args:
        tokenizer: the VQ-GAN.
        frames: uint8 RGB (N, S, S, 3).

    Returns:
        float32 (N, L + 1): codes, row-major, and behind them the root mean square distance.
    """
    latents = tokenizer.encode((frames.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous())
    codes, quantized, _ = tokenizer.quantize(latents)
    return torch.cat([codes.float(), quantization_rms(latents, quantized)[:, None]], dim=1)


def split_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `token_rows` made, float32 (..., L + 1), as codes, int64 (..., L), and distances (...)."""
    return rows[..., :-1].round().long(), rows[..., -1]


def to_levels(images: Tensor) -> Tensor:
    """Images (..., 3, S, S) in [-1, 1] as uint8 (..., S, S, 3); values outside are limited."""
    levels = ((images.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return levels.movedim(-3, -1)
