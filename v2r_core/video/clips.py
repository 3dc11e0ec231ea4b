"""What a method learns from: samples of one or several frames from many videos."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2r_core.video.augment import View
from v2r_core.video.cutting import Clip
from v2r_core.video.draws import Key, random_numbers
from v2r_core.video.footage import CacheFolder, find_videos, index_sources

Batch = dict[str, Any]
"""What `finish` makes of what a loader gives:

* views: one tensor a view, float32 normalised, (N, 3, h, w), or (N, 3, T, h, w) for clips;
* names: where each sample is from, "file#frame", the first frame of a clip;
* features: in place of views where a part of the network never changes: what it made of the frames, (N, T, ...);
* frames: numbers of the frames of each sample, int64 (N, T), and `lengths`: frames of their videos, int64 (N,);
* damaged: of each sample that was replaced by another one its name and what is wrong with it, mostly empty;
* what the mask sampler returned.
"""

MaskSampler = Callable[[int, int, torch.Generator], dict[str, Tensor]]
"""(batch size of this process, step, generator) -> entries that a batch gets besides; must be picklable."""

FramePicker = Callable[[int, np.random.Generator], Sequence[int]]
"""(frames of a video, generator) -> numbers of the `DataSpec.frames` frames of a sample, in any order; picklable."""


@dataclass(frozen=True)
class DataSpec:
    """What a method learns from.

    Attributes:
        views: how each view of an example is made.
        frames: frames of a clip; with 1, views are images.
        stride: frames of the video from one frame of a clip to the next.
        masks: draws what the method masks, or None.
        picker: draws the frames of a sample from a whole video, so that every video counts the same however long it
            is; None for clips that start at any frame.
        samples: of an epoch, where there is a picker; every video gives the same number, so it may be a few more.
        shortest: frames that a video must have, where there is a picker.

    Raises:
        ValueError: no view, or a number below 1.
    """

    views: tuple[View, ...]
    frames: int = 1
    stride: int = 1
    masks: MaskSampler | None = None
    picker: FramePicker | None = None
    samples: int = 1
    shortest: int = 1

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("views is empty, at least one View expected")
        for name in ("frames", "stride", "samples", "shortest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")

    @property
    def span(self) -> int:
        """Frames that a video must have: those that a clip reaches over."""
        return (self.frames - 1) * self.stride + 1 if self.picker is None else self.shortest


class ClipDataset:
    """All examples in some videos: one for each frame at which a clip can start, or draws from whole videos.

    Args:
        sources: videos and folders of them, as `find_videos` takes them. Each video is opened once, here.
        spec: what is made of them.
        seed: of all random choices, at least 0.
        every: only each such start frame is an example, from the first on.
        cache: folder for decoded frames, which are written now and read from then on, in this run and the next ones.
            Worth it for short videos and many epochs; see `video.frame_cache` for what it takes.
        cache_side: longest that the shorter side of a cached frame is, in pixels.

    Attributes:
        skipped: path and reason of each source that is not used: unreadable, empty, or shorter than a clip.
        features: one tensor a source, (frames, ...): what the loader gives in place of pixels, once it is set.

    Raises:
        ValueError: a number out of its range.
        FileNotFoundError: a path does not exist.
        VideoError: no source is left.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        spec: DataSpec,
        seed: int = 0,
        every: int = 1,
        cache: str | Path | None = None,
        cache_side: int = 256,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}, at least 1 expected")
        if seed < 0:
            raise ValueError(f"seed is {seed}, at least 0 expected")
        self.spec = spec
        self.seed = seed
        self._every = every
        self.cache = None if cache is None else CacheFolder(Path(cache), cache_side)
        self.sources, self.skipped = index_sources(find_videos(sources), spec.span, self.cache)
        self.features: list[Tensor] | None = None
        if spec.picker is None:
            starts = [-(-(source.frames - spec.span + 1) // every) for source in self.sources]
        else:
            starts = [-(-spec.samples // len(self.sources))] * len(self.sources)
        self._ends: list[int] = np.cumsum(starts).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def clip(self, example: int, epoch: int = 0) -> Clip:
        """Which frames an example, 0 to length - 1, has; with a picker they are others in each epoch."""
        source = bisect_right(self._ends, example)
        if self.spec.picker is not None:
            rng = random_numbers(self.seed, Key.PICK, epoch, example)
            return Clip(source, list(self.spec.picker(self.sources[source].frames, rng)))
        start = (example - (self._ends[source - 1] if source else 0)) * self._every
        return Clip(source, range(start, start + self.spec.span, self.spec.stride))

    def name(self, clip: Clip) -> str:
        """Where a clip is from: "file#frame", its first frame."""
        return f"{self.sources[clip.source].path}#{clip.frames[0]}"


def steps_per_epoch(examples: int, batch_size: int, world: int = 1) -> int:
    """Whole batches in an epoch; what is left over comes in another epoch's batches.

    Args:
        examples: length of the dataset.
        batch_size: of one process.
        world: number of processes.

    Raises:
        ValueError: the examples do not make one batch.
    """
    steps = examples // (batch_size * world)
    if steps == 0:
        raise ValueError(
            f"{examples} examples make no batch of {batch_size} for each of {world} processes; "
            "lower the batch size, take more start frames (every) or give more video"
        )
    return steps
