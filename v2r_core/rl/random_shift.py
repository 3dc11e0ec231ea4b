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
    return copied_crops(images, shifts, pad) if images.device.type == "cpu" else gathered_crops(images, shifts, pad)


def copied_crops(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """`random_shift` image by image: rows are copied as they lie, which for a CPU is as fast as it gets."""
    side = images.shape[-1]
    padded = _pad(images, pad)
    moved = torch.empty_like(images)
    for target, source, (x, y) in zip(moved, padded, shifts.tolist(), strict=True):
        target.copy_(source[:, y : y + side, x : x + side])
    return moved


def gathered_crops(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """`random_shift` in one gather: for a GPU, on which each image's copy would be a launch of its own."""
    side = images.shape[-1]
    line = torch.arange(-pad, side - pad, device=images.device)
    # Beyond an edge there is the edge's pixel.
    columns, rows = (shifts.to(images.device).T[:, :, None] + line).clamp(0, side - 1)
    places = (rows[:, :, None] * side + columns[:, None]).flatten(1)
    return images.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).view_as(images)


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
