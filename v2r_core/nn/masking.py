"""What is hidden from an encoder: MAE's random patches, I-JEPA's and V-JEPA's blocks.

The samplers are small frozen dataclasses, so that loader workers can unpickle them. They take the generator that stands
for torch's global one in the released codes: seeded alike, they draw the very same masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Compat = Literal["official", "paper"]

PATIENCE = 20
"""Failures in a row after which I-JEPA gives up keeping the context away from one more target."""
MAX_REDRAWS = 1000


def kept(length: int, ratio: float) -> int:
    """Number of patches that stay when a share `ratio` of `length` is masked, as MAE rounds it: towards zero."""
    return int(length * (1 - ratio))


def shuffle(noise: Tensor, ratio: float) -> tuple[Tensor, int]:
    """MAE's random masking (section 3, "Masking").

    Args:
        noise: shape (N, L), one number for each patch; those with the smallest are kept.
        ratio: share of patches that is masked, in [0, 1).

    Returns:
        int64 (N, L), the indices of the patches in ascending order of noise; and how many of them, from the front, are
        kept.

    Raises:
        ValueError: nothing would be kept.
    """
    length = noise.shape[1]
    count = kept(length, ratio)
    if count < 1:
        raise ValueError(f"a mask ratio of {ratio} keeps none of {length} patches; lower it or use smaller patches")
    return noise.argsort(dim=1), count


@dataclass(frozen=True)
class RandomNoise:
    """Sampler of the noise that MAE masks by.

    Attributes:
        patches: L, patches of an image.
    """

    patches: int

    def __call__(self, batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise`: float32 (batch, L), uniform in [0, 1)."""
        return {"noise": torch.rand(batch, self.patches, generator=generator)}


@dataclass(frozen=True)
class MultiBlock:
    """I-JEPA's multi-block masks (section 3, appendix A.1): one large context without several smaller targets.

    Block sizes are the same for the whole batch and for all processes: they come from a generator of their own that is
    seeded with the step. Positions come from the generator that is handed in, image by image.

    Attributes:
        grid: rows H and columns W of patches.
        target_scale: range of a target's share of the image.
        target_aspect: range of a target's height over its width.
        context_scale: range of the context block's share of the image; it is as high as it is wide.
        targets: number M of targets.
        min_keep: every list must have more tokens than this.
        compat: `official`: a block never touches the last row and column, one number decides scale and aspect, and
            lists are cut at their end, which starves the bottom of the image. `paper`: blocks reach the edges, scale
            and aspect are independent, and lists are cut by random choice.

    Raises:
        ValueError: blocks can be so small on this grid that they have no more than `min_keep` patches.
    """

    grid: tuple[int, int]
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    targets: int = 4
    min_keep: int = 10
    compat: Compat = "official"

    def __post_init__(self) -> None:
        # Not only the ends of the ranges: with an aspect of its own for each scale, the smallest block may lie between.
        parts = np.linspace(0, 1, 51).tolist()
        pairs = [(part, part) for part in parts] if self.compat == "official" else list(product(parts, parts))
        sizes = {self._target(share, shape) for share, shape in pairs} | {self._context_block(part) for part in parts}
        height, width = min(sizes, key=math.prod)
        if height * width <= self.min_keep:
            raise ValueError(
                f"on a grid of {self.grid}, a block can have as few as {height} x {width} patches, min_keep = "
                f"{self.min_keep} is not below that; lower min_keep or use smaller patches"
            )

    def __call__(self, batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws the masks of a batch.

        Args:
            batch: images N of this process.
            step: number of the optimizer step, the seed of the sizes.
            generator: CPU generator for the positions.

        Returns:
            `context`, int64 (N, K), and `targets`, int64 (M, N, P): flat patch indices, ascending.

        """
        target_size, context_size = self._sizes(step)
        contexts: list[NDArray[np.int64]] = []
        targets: list[list[NDArray[np.int64]]] = [[] for _ in range(self.targets)]
        for _ in range(batch):
            blocks = [self._block(target_size, generator) for _ in range(self.targets)]
            for found, block in zip(targets, blocks, strict=True):
                found.append(np.flatnonzero(block))
            contexts.append(self._context(context_size, blocks, generator))
        # All targets are equally large; only the contexts have to be cut.
        return {
            "context": cut(contexts, self.compat, generator),
            "targets": torch.from_numpy(np.stack([np.stack(found) for found in targets])),
        }

    def _sizes(self, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heights and widths of targets and context."""
        sizes = torch.Generator().manual_seed(step)
        share = _uniform(sizes)
        shape = share if self.compat == "official" else _uniform(sizes)
        return self._target(share, shape), self._context_block(_uniform(sizes))

    def _target(self, share: float, shape: float) -> tuple[int, int]:
        scale, aspect = _between(self.target_scale, share), _between(self.target_aspect, shape)
        return _block_size(self.grid, scale, aspect, self._largest)

    def _context_block(self, share: float) -> tuple[int, int]:
        return _block_size(self.grid, _between(self.context_scale, share), 1.0, self._largest)

    @property
    def _largest(self) -> tuple[int, int]:
        short = self.compat == "official"
        return self.grid[0] - short, self.grid[1] - short

    def _block(self, size: tuple[int, int], generator: torch.Generator) -> NDArray[np.bool_]:
        """A block somewhere in the image, bool (H, W)."""
        room = [side - length + (self.compat == "paper") for side, length in zip(self.grid, size, strict=True)]
        top, left = (_integer(count, generator) for count in room)
        block = np.zeros(self.grid, np.bool_)
        block[top : top + size[0], left : left + size[1]] = True
        return block

    def _context(
        self, size: tuple[int, int], blocks: list[NDArray[np.bool_]], generator: torch.Generator
    ) -> NDArray[np.int64]:
        """Indices of a block's patches that are in none of the targets."""
        failures = 0
        while True:
            context = self._block(size, generator)
            for block in blocks[: max(len(blocks) - failures // PATIENCE, 0)]:
                context &= ~block
            if context.sum() > self.min_keep:
                return np.flatnonzero(context)
            failures += 1


@dataclass(frozen=True)
class BlockKind:
    """One kind of V-JEPA's masks.

    Attributes:
        blocks: how many blocks are masked.
        spatial_scale: range of a block's share of a frame.
        temporal_scale: range of its share of the clip's length.
        aspect: range of its height over its width.
        max_temporal_keep: share of the clip, from its start, that a context may see.
    """

    blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    max_temporal_keep: float = 1.0


SHORT_RANGE = BlockKind(8, (0.15, 0.15))
LONG_RANGE = BlockKind(2, (0.7, 0.7))


@dataclass(frozen=True)
class MultiBlock3d:
    """V-JEPA's multi-block masks (section 3.2): the union of blocks is masked, its complement is the context.

    Sizes come from a generator seeded with the step, positions from the one that is handed in, as in `MultiBlock`.

    Attributes:
        grid: frames D, rows H and columns W of patches.
        kinds: kinds of masks that every batch gets.
        compat: `official` cuts the lists of a batch at their end, which starves the late frames; `paper` by random
            choice.
    """

    grid: tuple[int, int, int]
    kinds: tuple[BlockKind, ...] = (SHORT_RANGE, LONG_RANGE)
    compat: Compat = "official"

    def __call__(self, batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws the masks of a batch.

        Args:
            batch: clips N of this process.
            step: number of the optimizer step, the seed of the sizes.
            generator: CPU generator for the positions.

        Returns:
            For each kind i, `context_<i>`, int64 (N, K), and `target_<i>`, int64 (N, P): flat indices, ascending.

        Raises:
            ValueError: blocks are so large that they leave no context.
        """
        found: dict[str, Tensor] = {}
        for number, kind in enumerate(self.kinds):
            size = self._size(kind, step)
            masks = [self._mask(kind, size, generator) for _ in range(batch)]
            found[f"context_{number}"] = cut((np.flatnonzero(~mask) for mask in masks), self.compat, generator)
            found[f"target_{number}"] = cut((np.flatnonzero(mask) for mask in masks), self.compat, generator)
        return found

    def _size(self, kind: BlockKind, step: int) -> tuple[int, int, int]:
        sizes = torch.Generator().manual_seed(step)
        frames = max(1, int(self.grid[0] * _between(kind.temporal_scale, _uniform(sizes))))
        scale, aspect = _between(kind.spatial_scale, _uniform(sizes)), _between(kind.aspect, _uniform(sizes))
        return (frames, *_block_size(self.grid[1:], scale, aspect, self.grid[1:]))

    def _mask(self, kind: BlockKind, size: tuple[int, int, int], generator: torch.Generator) -> NDArray[np.bool_]:
        """True where a clip is masked, bool (D, H, W)."""
        depth, height, width = self.grid
        frames, rows, columns = size
        for _ in range(MAX_REDRAWS):
            mask = np.zeros(self.grid, np.bool_)
            for _ in range(kind.blocks):
                top = _integer(height - rows + 1, generator)
                left = _integer(width - columns + 1, generator)
                start = _integer(depth - frames + 1, generator)
                mask[start : start + frames, top : top + rows, left : left + columns] = True
            if kind.max_temporal_keep < 1:
                mask[max(1, int(depth * kind.max_temporal_keep)) :] = True
            if not mask.all():
                return mask
        raise ValueError(
            f"{kind.blocks} blocks of {size} patches left nothing of a grid of {self.grid} in {MAX_REDRAWS} attempts; "
            "mask fewer or smaller blocks"
        )


def cut(lists: Iterable[NDArray[np.int64]], compat: Compat, generator: torch.Generator) -> Tensor:
    """Lists of ascending indices, cut to the shortest and stacked, int64 (N, shortest): at the end, or by lot."""
    rows = list(lists)
    shortest = min(len(row) for row in rows)
    if compat == "official":
        return torch.from_numpy(np.stack([row[:shortest] for row in rows]))
    lots = [torch.randperm(len(row), generator=generator)[:shortest].sort().values.numpy() for row in rows]
    return torch.from_numpy(np.stack([row[lot] for row, lot in zip(rows, lots, strict=True)]))


def _block_size(grid: tuple[int, int], scale: float, aspect: float, largest: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a block; round() takes halves to the even number, as in the released code."""
    area = int(grid[0] * grid[1] * scale)
    return min(round(math.sqrt(area * aspect)), largest[0]), min(round(math.sqrt(area / aspect)), largest[1])


def _between(bounds: tuple[float, float], part: float) -> float:
    return bounds[0] + part * (bounds[1] - bounds[0])


def _uniform(generator: torch.Generator) -> float:
    return torch.rand(1, generator=generator).item()


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0 ... count - 1. Drawn one by one: torch consumes random numbers in another order for a whole tensor."""
    return int(torch.randint(count, (1,), generator=generator))
