"""Images to patches and back."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images (N, 3, H, W) to patches (N, L, patch * patch * 3), row-major; inside a patch row, column, channel."""
    rows = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} patches are no square image; patches of square images expected")
    planes = patches.reshape(len(patches), side, side, patch, patch, 3)
    return planes.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, side * patch, side * patch)
