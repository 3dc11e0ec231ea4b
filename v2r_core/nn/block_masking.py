"""Blockwise masks for iBOT and DINOv2, after BEiT (Bao et al. 2021, algorithm 1)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TRIES = 10
"""How often a block is drawn before a mask is left as it is."""


def draw_block_mask(
    rng: random.Random,
    grid: tuple[int, int],
    target: int,
    max_patches: float,
    min_patches: int = 4,
    min_aspect: float = 0.3,
) -> NDArray[np.bool_]:
    """One mask, made of rectangles.

    Args:
        rng: source of all choices; their order is the released code's.
        grid: rows and columns of patches.
        target: patches to mask; fewer where no further block fits, never more.
        max_patches: most patches that one block adds.
        min_patches: least area that a block is drawn with.
        min_aspect: least height over width; the largest is its inverse.

    Returns:
        bool (rows, columns), True where masked.
    """
    log_aspect = (math.log(min_aspect), math.log(1 / min_aspect))
    mask = np.zeros(grid, dtype=np.bool_)
    count = 0
    while count < target:
        added = _add_block(rng, mask, min(target - count, max_patches), min_patches, log_aspect)
        if not added:
            break
        count += added
    return mask


def _add_block(
    rng: random.Random, mask: NDArray[np.bool_], budget: float, min_patches: int, log_aspect: tuple[float, float]
) -> int:
    """Adds a rectangle to the mask, in place; returns how many patches are new, 0 if none of the tries fitted."""
    rows, columns = mask.shape
    for _ in range(TRIES):
        area = rng.uniform(min_patches, budget)
        aspect = math.exp(rng.uniform(*log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width >= columns or height >= rows:
            continue
        top = rng.randint(0, rows - height)
        left = rng.randint(0, columns - width)
        block = mask[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= budget:
            block[:] = True
            return new
    return 0


@dataclass(frozen=True)
class BlockMasking:
    """Sampler of the masks of a batch's global crops (DINOv2, appendix on implementation).

    Attributes:
        grid: rows and columns of patches of a global crop.
        ratio: least and largest part of a masked crop's patches; the masked crops are spread evenly over it.
        probability: part of the crops that is masked at all.
        crops: global crops of an image.
        max_share: largest part of the patches that one block adds.
        min_patches: least area that a block is drawn with.
        min_aspect: least height over width of a block.
    """

    grid: tuple[int, int]
    ratio: tuple[float, float] = (0.1, 0.5)
    probability: float = 0.5
    crops: int = 2
    max_share: float = 0.5
    min_patches: int = 4
    min_aspect: float = 0.3

    def __post_init__(self) -> None:
        low, high = self.ratio
        if not (0 <= low <= high <= 1 and 0 <= self.probability <= 1):
            raise ValueError(
                f"ratio is {self.ratio}, probability {self.probability}; parts from 0 to 1 expected, in ascending order"
            )

    def __call__(self, batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws the masks of a batch; see `collate`."""
        seed = int(torch.randint(2**62, (), generator=generator))
        return collate(self.draw(random.Random(seed), batch))

    def draw(self, rng: random.Random, batch: int) -> NDArray[np.bool_]:
        """Masks of all global crops of `batch` images, bool (crops * batch, rows * columns), in random order."""
        rows, columns = self.grid
        patches, count = rows * columns, self.crops * batch
        masked = int(count * self.probability)
        edges = self.edges(masked)
        masks = []
        for low, high in pairwise(edges):
            # Single precision, as released: it decides which whole number comes out.
            ratio = low + (high - low) * np.float32(rng.random())
            target = int(np.float32(patches) * ratio)
            share = self.max_share * patches
            masks.append(draw_block_mask(rng, self.grid, target, share, self.min_patches, self.min_aspect))
        masks += [np.zeros(self.grid, dtype=np.bool_)] * (count - masked)
        rng.shuffle(masks)
        return np.stack(masks).reshape(count, patches)

    def edges(self, masked: int) -> NDArray[np.float32]:
        """Limits of the ratios of `masked` crops, float32 (masked + 1,)."""
        limits: NDArray[np.float32] = torch.linspace(*self.ratio, masked + 1).numpy()
        return limits

    def most(self, batch: int) -> int:
        """Largest number of masked patches that a batch can have."""
        patches = np.float32(self.grid[0] * self.grid[1])
        masked = int(self.crops * batch * self.probability)
        return sum(int(patches * edge) for edge in self.edges(masked)[1:])


def collate(masks: NDArray[np.bool_]) -> dict[str, Tensor]:
    """What the loss needs to know of masks (N, L).

    Returns:
        `mask`: bool (N, L).
        `mask_indices`: int64 (n,), flat indices of the masked patches, ascending.
        `mask_weights`: float32 (n,), one over the number of masked patches in the patch's image.
    """
    mask = torch.from_numpy(masks)
    share = 1 / mask.sum(dim=1, keepdim=True).clamp(min=1).float()
    indices = mask.flatten().nonzero().flatten()
    return {"mask": mask, "mask_indices": indices, "mask_weights": share.expand_as(mask).flatten()[indices]}
