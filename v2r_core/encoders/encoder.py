"""An encoder: prepared frames in, embeddings out, with the normalisation inside.

The one documented input is uint8 RGB, channels last, at `preprocess.size`. Cast, scale and normalisation are part of
the module, hence part of the exported graph, so that training, a notebook and a robot cannot disagree about them.
Resizing is outside (`v2r_core.video.resize`), one function for all of them. Nothing looks at the values to guess
their range: an almost black uint8 frame is not mistaken for one that was already scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.video.resize import Preprocess


@dataclass(frozen=True)
class WeightsInfo:
    """Where an encoder's weights are from.

    Attributes:
        source: what a reader needs to find them again: a package and its version, a file name, or the seed.
        license: SPDX expression where there is one, else a sentence.
        attribution: whom the licence asks to name; empty if nobody.
        sha256: hash of the file that they were read from; empty for random weights.
    """

    source: str
    license: str
    attribution: str = ""
    sha256: str = ""


class Encoder(nn.Module):
    """A backbone with its documented input.

    Attributes:
        name: identifier, as in the zoo or as the user chose it.
        backbone: module from normalised float NCHW images (N, 3, S, S) to embeddings (N, D).
        preprocess: how a frame must be prepared, and the mean and standard deviation that are applied inside.
        embedding_dim: D.
        weights: source and licence of the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        preprocess: Preprocess,
        embedding_dim: int,
        weights: WeightsInfo,
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone
        self.preprocess = preprocess
        self.embedding_dim = embedding_dim
        self.weights = weights
        # Not persistent: the values belong to the preprocess record, not to a checkpoint of the backbone.
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeds prepared frames.

        Args:
            frames: uint8 RGB, shape (N, S, S, 3) with S = `preprocess.size`, values 0 to 255.

        Returns:
            Embeddings, shape (N, D), in the dtype of the module (float32 unless it was converted).

        Raises:
            ValueError: dtype or shape is another.
        """
        if frames.dtype != torch.uint8:
            raise ValueError(
                f"{self.name}: frames are {frames.dtype}, torch.uint8 expected; "
                "give unrounded images in [0, 1] to embed_unit instead"
            )
        self._check_shape(frames)
        # The cast comes first: TensorRT takes uint8 as a network input and for nothing else.
        return self._embed(frames.to(self.mean.dtype).permute(0, 3, 1, 2) / 255.0)

    def embed_unit(self, frames: Tensor) -> Tensor:
        """Embeds prepared frames that were never rounded to integers, as the papers' own pipelines do.

        Args:
            frames: floating point RGB, shape (N, S, S, 3), on the [0, 1] scale. The values are used as they are.

        Returns:
            Embeddings, shape (N, D).

        Raises:
            ValueError: the dtype is not floating point, or the shape is another.
        """
        if not frames.is_floating_point():
            raise ValueError(
                f"{self.name}: frames are {frames.dtype}, a floating point dtype expected; call the encoder for uint8"
            )
        self._check_shape(frames)
        return self._embed(frames.to(self.mean.dtype).permute(0, 3, 1, 2))

    def _embed(self, images: Tensor) -> Tensor:
        return self.backbone((images - self.mean) / self.std)

    def _check_shape(self, frames: Tensor) -> None:
        size = self.preprocess.size
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (size, size, 3):
            raise ValueError(
                f"{self.name}: frames have shape {tuple(frames.shape)}, (N, {size}, {size}, 3) expected; "
                "prepare them with v2r_core.video.resize"
            )


def numpy_embed(encoder: Encoder) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Wraps an encoder as the `Embed` callable that the rewards work on.

    Each call runs in evaluation and inference mode on the device that the encoder is on, and leaves the module in the
    mode it found, so that a training loop can score in between.

    Args:
        encoder: the encoder; later changes of its weights are seen.

    Returns:
        Function from uint8 frames (N, S, S, 3) to float32 embeddings (N, D). It raises the encoder's `ValueError`s,
        also for an array of another dtype.
    """

    def embed(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        was_training = encoder.training
        encoder.eval()
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(np.array(frames, order="C")).to(encoder.mean.device)
                return encoder(batch).float().cpu().numpy()
        finally:
            encoder.train(was_training)

    return embed
