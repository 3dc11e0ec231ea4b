"""DrQ's augmentation (Yarats et al. 2022, section 3.1): images moved by a few pixels, their edges repeated.

The authors sample a padded image bilinearly at whole pixels, which is a crop up to rounding. Here it is the crop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_shifts(count: int, pad: int, generator: torch.Generator | None = None) -> Tensor:
    """Shifts of `count` images, int64 (count, 2): x and y, 0 to 2 * pad each."""
    # In float and with these axes, as the released code draws them: the same numbers from the same seed.
    drawn = torch.randint(0, 2 * pad + 1, (count, 1, 1, 2), dtype=torch.float32, generator=generator)
    return drawn.reshape(count, 2).long()


def random_shift(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Rows y to y + S and columns x to x + S of images whose edges were repeated `pad` times.

    Args:
        images: (N, C, S, S) of any dtype; all channels, so all frames of a stack, are moved alike.
        shifts: int64 (N, 2), x and y, 0 to 2 * pad; `pad` leaves an image as it is.
        pad: of `draw_shifts`.

    Returns:
        A new tensor like `images`; within 4e-3 of the authors' on the scale of 0 to 255.

    Raises:
        ValueError: a shift out of range, or another number of them.
    """
    if shifts.shape != (len(images), 2) or (len(shifts) and not 0 <= shifts.min() <= shifts.max() <= 2 * pad):
        raise ValueError(f"shifts are {tuple(shifts.shape)}, ({len(images)}, 2) from 0 to {2 * pad} expected")
    side = images.shape[-1]
    padded = _pad(images, pad)
    moved = torch.empty_like(images)
    for target, source, (x, y) in zip(moved, padded, shifts.tolist(), strict=True):
        target.copy_(source[:, y : y + side, x : x + side])
    return moved


def _pad(images: Tensor, pad: int) -> Tensor:
    # torch pads no uint8 images by their edges.
    if not pad:
        return images
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * pad, width + 2 * pad)
    rows = slice(pad, -pad)
    padded[:, :, rows, rows] = images
    padded[:, :, rows, :pad] = images[..., :1]
    padded[:, :, rows, -pad:] = images[..., -1:]
    padded[:, :, :pad] = padded[:, :, pad : pad + 1]
    padded[:, :, -pad:] = padded[:, :, -pad - 1 : -pad]
    return padded
