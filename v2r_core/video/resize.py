"""From a camera frame to what an encoder takes: one function, the same online and offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]
"""One image: uint8 RGB, shape (H, W, 3)."""

ResizeMode = Literal["squash", "crop"]


@dataclass(frozen=True)
class Preprocess:
    """What happens to a frame before an encoder sees it.

    Attributes:
        size: side of the square encoder input in pixels.
        mode: `squash` resizes to size x size and ignores the aspect ratio (UVD's way); `crop` resizes the
            shorter side to `resize_to` and crops the centre (VIP's and R3M's way).
        resize_to: length of the shorter side before the crop, in pixels; unused by `squash`.
        mean: per-channel mean on the [0, 1] scale, subtracted inside the encoder.
        std: per-channel standard deviation on the [0, 1] scale, divided by inside the encoder.
    """

    size: int = 224
    mode: ResizeMode = "squash"
    resize_to: int = 256
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, at least 1 pixel expected")
        if self.mode not in get_args(ResizeMode):
            raise ValueError(f"mode is {self.mode!r}, one of {list(get_args(ResizeMode))} expected")
        if self.mode == "crop" and self.resize_to < self.size:
            raise ValueError(f"resize_to is {self.resize_to}, at least size ({self.size}) is needed to crop from it")


def resize_frame(frame: Frame, preprocess: Preprocess) -> Frame:
    """Brings a frame to the encoder's size, antialiased bilinear, rounded to whole levels.

    Args:
        frame: uint8 RGB (H, W, 3), any size.
        preprocess: size and mode.

    Returns:
        uint8 RGB (S, S, 3), read-only. A frame that is (S, S, 3) already is returned as it is, not copied and in `crop`
        mode not cropped either, as VIP and torchvision do.

    Raises:
        ValueError: not uint8, not (H, W, 3), or without pixels.
    """
    _check(frame)
    size = preprocess.size
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return frame
    rows, columns, top, left = _plan(height, width, preprocess)
    # The crop is taken out of the source and not out of the resized frame: the filter keeps its scale and phase and
    # looks beyond the box, so the result is the same, and what would be thrown away is never computed.
    y, x = height / rows, width / columns
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box=box))


def resize_frame_unit(frame: Frame, preprocess: Preprocess) -> NDArray[np.float32]:
    """`resize_frame` without rounding: what a paper's own pre-processing computes in floating point.

    Args:
        frame: uint8 RGB (H, W, 3), any size.
        preprocess: size and mode.

    Returns:
        float32 RGB (S, S, 3) in [0, 1]; mean and standard deviation are not applied.

    Raises:
        ValueError: not uint8, not (H, W, 3), or without pixels.
    """
    _check(frame)
    size = preprocess.size
    height, width = frame.shape[:2]
    unit = frame.astype(np.float32) / np.float32(255)
    if (height, width) == (size, size):
        return unit
    rows, columns, top, left = _plan(height, width, preprocess)
    out = np.empty((size, size, 3), np.float32)
    for channel in range(3):
        # Resize, then crop: Pillow keeps a box in single precision, which costs 1e-5 of the result.
        image = Image.fromarray(unit[..., channel]).resize((columns, rows), Image.Resampling.BILINEAR)
        out[..., channel] = np.asarray(image)[top : top + size, left : left + size]
    return out


def _check(frame: Frame) -> None:
    if frame.dtype != np.uint8:
        raise ValueError(f"frame has dtype {frame.dtype}, uint8 expected; scale values to 0..255 and round first")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame has shape {frame.shape}, (H, W, 3) RGB expected")
    if frame.size == 0:
        raise ValueError(f"frame has shape {frame.shape}: no pixels")


def _plan(height: int, width: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Rows and columns to resize to, then top and left of the square to cut out of that."""
    size = preprocess.size
    if preprocess.mode == "squash":
        return size, size, 0, 0
    short = min(height, width)
    rows, columns = (int(preprocess.resize_to * side / short) for side in (height, width))
    # round() takes halves to the even number: torchvision's centre crop.
    top, left = (round((side - size) / 2) for side in (rows, columns))
    return rows, columns, top, left
