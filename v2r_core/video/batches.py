"""Batches of clips, decoded in worker processes, the same for any number of them.

Which examples a step has depends on the seed and the step; how an example is augmented on the seed, the epoch and the
example. So a run that starts at step 1000 sees what an uninterrupted one saw from there on.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from v2r_core.video.clips import Batch, ClipDataset, steps_per_epoch
from v2r_core.video.cutting import Cut, cut_views
from v2r_core.video.draws import Key, Look, random_numbers, random_seed, uniforms_needed
from v2r_core.video.footage import Reader
from v2r_core.video.photometric import render
from v2r_core.video.video import VideoError

_GRACE = 60
"""Seconds that a worker lives on after a signal to end."""

_SPARES = 20
"""Examples that are tried where a whole batch is damaged."""


def make_loader(
    dataset: ClipDataset,
    batch_size: int,
    workers: int = 0,
    *,
    start_step: int = 0,
    steps: int | None = None,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
) -> DataLoader[Batch]:
    """Makes the iterable over batches; one pass over it is a whole run, epoch after epoch.

    Every batch must go through `finish`. Workers finish views for a CPU whose colours change; other views travel as
    uint8 pixels: between two processes, float32 ones take longer than normalisation does (a clip of 16 x 224 x 224, in
    ms: 5.8 and 1.5 to share float32 and uint8, 1.0 to normalise).

    Args:
        dataset: the examples.
        batch_size: samples of this process in a step.
        workers: processes that decode; 0 to decode in this one.
        start_step: the first step, counted over all epochs.
        steps: how many steps to make from there on, None to go on for ever.
        rank: number of this process.
        world: number of processes, which share a step's examples.
        device: where the training is.

    Raises:
        ValueError: a number out of its range, or fewer examples than one step takes.
    """
    if batch_size < 1 or workers < 0 or start_step < 0 or not 0 <= rank < world:
        raise ValueError(
            f"batch_size is {batch_size}, workers {workers}, start_step {start_step}, rank {rank} of {world}; "
            "batch_size from 1, workers and start_step from 0 and rank from 0 to world - 1 expected"
        )
    on_cpu = torch.device(device).type == "cpu"
    return _Loader(
        _Batches(dataset, rank, on_cpu),
        batch_size=None,
        sampler=_Order(dataset, batch_size, start_step, steps, rank, world),
        # Features lie in memory: to send them from another process takes longer than to look them up.
        num_workers=0 if dataset.features is not None else workers,
        pin_memory=torch.device(device).type == "cuda",
        # Its own generator, because the loader draws from it: the global one is part of what a resumed run restores.
        generator=torch.Generator(),
        worker_init_fn=_start_worker,
    )


def finish(batch: Batch, device: str | torch.device = "cpu") -> Batch:
    """Brings a batch to the device, and finishes those views that no worker has finished.

    Args:
        batch: from the loader.
        device: where to.

    Returns:
        A batch as the methods take it.
    """
    done = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
        if key not in ("looks", "views")
    }
    if "features" in batch:
        return done
    done["views"] = [
        view.to(device, non_blocking=True) if look is None else _render(view.to(device, non_blocking=True), look)
        for view, look in zip(batch["views"], batch["looks"], strict=True)
    ]
    return done


class _Loader(DataLoader[Batch]):
    """Leaves no decoder as garbage to its workers."""

    def __iter__(self) -> Any:
        # A worker may collect its copy of the garbage before `_start_worker` runs: it would wait for ever for the
        # threads of a decoder, which were not forked.
        gc.collect()
        return super().__iter__()


@dataclass(frozen=True)
class _Step:
    """What a worker is asked for."""

    step: int
    epoch: int
    examples: NDArray[np.int64]


class _Order(Sampler[_Step]):
    """The steps of a run: each epoch is a permutation, and ranks take slices of its batches."""

    def __init__(
        self, dataset: ClipDataset, batch_size: int, start: int, steps: int | None, rank: int, world: int
    ) -> None:
        self._per_epoch = steps_per_epoch(len(dataset), batch_size, world)
        self._examples = len(dataset)
        self._seed = dataset.seed
        self._batch_size = batch_size
        self._start, self._steps = start, steps
        self._rank, self._world = rank, world

    def __iter__(self) -> Iterator[_Step]:
        known = -1
        for step in islice(count(self._start), self._steps):
            epoch, place = divmod(step, self._per_epoch)
            if epoch != known:
                permutation = random_numbers(self._seed, Key.ORDER, epoch).permutation(self._examples)
                known = epoch
            first = (place * self._world + self._rank) * self._batch_size
            yield _Step(step, epoch, permutation[first : first + self._batch_size])

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError("this loader never ends; give it steps")
        return self._steps


class _Batches(Dataset[Batch]):
    """Makes whole batches, so that the loader's own collation has nothing to do."""

    def __init__(self, dataset: ClipDataset, rank: int, on_cpu: bool) -> None:
        self._dataset = dataset
        self._rank = rank
        self._finished = [on_cpu and not view.keeps_colors for view in dataset.spec.views]
        self._reader = Reader(dataset.sources, dataset.cache)

    def __getitem__(self, order: _Step) -> Batch:
        # As in a worker: sums depend on the number of threads in their last bit.
        with _one_thread():
            return self._make(order)

    def _make(self, order: _Step) -> Batch:
        dataset, spec, seed = self._dataset, self._dataset.spec, self._dataset.seed
        examples = order.examples.tolist()
        clips = [dataset.clip(example, order.epoch) for example in examples]
        batch: Batch = {"damaged": []}
        if dataset.features is not None:
            batch["features"] = torch.stack([dataset.features[clip.source][list(clip.frames)] for clip in clips])
        else:
            cut = self._cut(order, examples)
            if cut.damaged:
                batch["damaged"] = [f"{dataset.name(clips[row])}: {cut.damaged[row]}" for row in sorted(cut.damaged)]
                cut, examples = self._replace(order, examples, cut)
                clips = [dataset.clip(example, order.epoch) for example in examples]
            views = list(zip(cut.pixels, cut.looks, self._finished, strict=True))
            batch["views"] = [_render(pixels, look) if finished else pixels for pixels, look, finished in views]
            batch["looks"] = [None if finished else look for _, look, finished in views]
        batch["names"] = [dataset.name(clip) for clip in clips]
        batch["frames"] = torch.tensor([list(clip.frames) for clip in clips])
        batch["lengths"] = torch.tensor([dataset.sources[clip.source].frames for clip in clips])
        if spec.masks is not None:
            generator = torch.Generator().manual_seed(random_seed(seed, Key.MASKS, order.step, self._rank))
            batch.update(spec.masks(len(examples), order.step, generator))
        return batch

    def _cut(self, order: _Step, examples: Sequence[int]) -> Cut:
        views, seed = self._dataset.spec.views, self._dataset.seed
        needed = sum(uniforms_needed(view) for view in views)
        uniforms = [random_numbers(seed, Key.VIEWS, order.epoch, example).random(needed) for example in examples]
        shared = random_numbers(seed, Key.BATCH, order.step, self._rank).random(len(views))
        clips = [self._dataset.clip(example, order.epoch) for example in examples]
        return cut_views(self._reader, views, clips, np.stack(uniforms), shared)

    def _replace(self, order: _Step, examples: list[int], cut: Cut) -> tuple[Cut, list[int]]:
        """Puts the next whole sample of the batch into the place of each damaged one."""
        total = len(examples)
        if len(cut.damaged) < total:
            rows = [next(r % total for r in count(row) if r % total not in cut.damaged) for row in range(total)]
            return cut.rows(np.array(rows)), [examples[row] for row in rows]
        spares = random_numbers(self._dataset.seed, Key.SPARE, order.step, self._rank)
        for example in spares.integers(len(self._dataset), size=_SPARES).tolist():
            spare = self._cut(order, [example])
            if not spare.damaged:
                return spare.rows(np.zeros(total, np.int64)), [example] * total
        first = self._dataset.name(self._dataset.clip(examples[0], order.epoch))
        raise VideoError(
            f"step {order.step}: all {total} samples are damaged, and {_SPARES} others too, the first one "
            f"{first} ({cut.damaged[0]}); check the videos and their disk"
        )


def _start_worker(_: int) -> None:
    # A forked worker has a copy of its parent's garbage. To collect a decoder in it would be to wait for ever, for
    # threads that were not forked.
    gc.freeze()
    # Signals go to the whole process group. The trainer still needs batches for the step after which it stops, so a
    # worker lives on for a while; an ordinary shutdown does not signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: signal.alarm(_GRACE))


def _render(pixels: Tensor, look: Look) -> Tensor:
    """Clips keep their time axis, images have none."""
    view = render(pixels, look)
    return view.squeeze(2) if pixels.shape[1] == 1 else view


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
