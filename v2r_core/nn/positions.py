"""Position tables: fixed sines and cosines in the orders of the released codes, resampling, and rotary positions."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Order = Literal["row", "column"]
Resampling = Literal["offset", "antialias"]


def sincos_axis(positions: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Sines, then cosines, of positions at frequencies 10000^(-i / (channels / 2)).

    Args:
        positions: shape (L,).
        channels: even number of channels.

    Returns:
        float64, shape (L, channels).

    Raises:
        ValueError: `channels` is odd.
    """
    if channels % 2:
        raise ValueError(f"{channels} channels for an axis of the position table, an even number needed; other width?")
    omega = 1.0 / 10000 ** (np.arange(channels // 2, dtype=np.float64) / (channels / 2))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(width: int, grid: tuple[int, int], order: Order, prefix: int = 0) -> NDArray[np.float64]:
    """The fixed table of an image transformer.

    Args:
        width: channels D, a multiple of 4.
        grid: rows and columns of patches.
        order: which index the first D/2 channels encode: `row` (MoCo v3, V-JEPA) or `column` (MAE, I-JEPA).
        prefix: rows of zeros in front, one for a class token.

    Returns:
        float64, shape (prefix + rows * columns, D), patches in row-major order.
    """
    rows, columns = (axis.reshape(-1).astype(np.float64) for axis in np.indices(grid))
    first, second = (rows, columns) if order == "row" else (columns, rows)
    table = np.concatenate([sincos_axis(first, width // 2), sincos_axis(second, width // 2)], axis=1)
    return np.concatenate([np.zeros((prefix, width)), table])


def sincos_3d(width: int, grid: tuple[int, int, int], uniform: bool = True) -> NDArray[np.float64]:
    """The fixed table of V-JEPA: depth, height, width, in this order of channels.

    Args:
        width: channels D.
        grid: frames, rows and columns of patches.
        uniform: every axis gets ceil(D / 6) * 2 channels, cut to D in the end; otherwise depth gets half of them.

    Returns:
        float64, shape (frames * rows * columns, D).
    """
    frames, rows, columns = (axis.reshape(-1).astype(np.float64) for axis in np.indices(grid))
    shares = [math.ceil(width / 6) * 2] * 3 if uniform else [width // 2, width // 4, width // 4]
    parts = [sincos_axis(axis, share) for axis, share in zip((frames, rows, columns), shares, strict=True)]
    return np.concatenate(parts, axis=1)[:, :width]


def resample_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], how: Resampling) -> Tensor:
    """A learned table for another grid of patches, bicubic.

    Args:
        table: shape (1, rows * columns, D), without the rows of class or register tokens.
        old: rows and columns that it was made for.
        new: rows and columns that are wanted.
        how: `offset` samples at the scale (n + 0.1) / n_old, without antialiasing: DINO, and DINOv2 without
            registers. `antialias` samples to the size itself: DINOv2 with registers.

    Returns:
        shape (1, new rows * new columns, D); the table itself where the grids are equal.
    """
    if old == new:
        return table
    width = table.shape[-1]
    planes = table.reshape(1, *old, width).permute(0, 3, 1, 2).float()
    if how == "antialias":
        resampled = functional.interpolate(planes, size=new, mode="bicubic", antialias=True, align_corners=False)
    else:
        # The scale, not the size, defines where the samples lie.
        scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        resampled = functional.interpolate(planes, scale_factor=scale, mode="bicubic", align_corners=False)
    if tuple(resampled.shape[-2:]) != new:
        raise ValueError(f"position table became {tuple(resampled.shape[-2:])}, {new} expected; use another size")
    return resampled.permute(0, 2, 3, 1).reshape(1, -1, width).to(table.dtype)


def resample_table_3d(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """A table of a video transformer for another grid, trilinear, as V-JEPA does it.

    Args:
        table: shape (1, frames * rows * columns, D).
        old: grid that it was made for.
        new: grid that is wanted.

    Returns:
        shape (1, number of new patches, D); the table itself where the grids are equal.
    """
    if old == new:
        return table
    width = table.shape[-1]
    volume = table.reshape(1, *old, width).permute(0, 4, 1, 2, 3)
    scale = tuple(n / o for n, o in zip(new, old, strict=True))
    resampled = functional.interpolate(volume, scale_factor=scale, mode="trilinear", align_corners=False)
    return resampled.permute(0, 2, 3, 4, 1).reshape(1, -1, width)


def rotate(values: Tensor, positions: Tensor) -> Tensor:
    """V-JEPA 2's rotary positions.

    The frequencies are tiled over the channels while neighbouring channels are paired, so this is no rotation: norms
    change. The released weights were trained with it.

    Args:
        values: shape (..., L, D), queries or keys, D even.
        positions: shape (..., L), broadcast to the leading dimensions of `values`.

    Returns:
        shape of `values`.
    """
    half = values.shape[-1] // 2
    # Angles in float32, also where mixed precision makes the values narrower.
    omega = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = positions.float()[..., None] * omega
    angles = torch.cat([angles, angles], dim=-1)
    even, odd = values.unflatten(-1, (half, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return values * angles.cos().to(values.dtype) + turned * angles.sin().to(values.dtype)


def rotate_axes(values: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rotary positions along frame, row and column, for a third of the channels each; the rest stay as they are.

    Args:
        values: shape (B, heads, L, D).
        tokens: flat indices of the tokens in frame, row, column order, int64, shape (L,) or (B, L).
        grid: rows and columns of patches in a frame.

    Returns:
        shape (B, heads, L, D).
    """
    share = 2 * ((values.shape[-1] // 3) // 2)
    rows, columns = grid
    frame = tokens // (rows * columns)
    rest = tokens % (rows * columns)
    places = (frame, rest // columns, rest % columns)
    parts = []
    for axis, place in enumerate(places):
        where = place[:, None, :] if place.ndim == 2 else place
        parts.append(rotate(values[..., axis * share : (axis + 1) * share], where))
    return torch.cat([*parts, values[..., 3 * share :]], dim=-1)
