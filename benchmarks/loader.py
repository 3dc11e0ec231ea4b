"""The loader of training batches against bare PyAV decoding of the same frames in as many processes."""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import torch
from av.container import InputContainer

from v2r_core import CLIPS
from v2r_core.video.augment import mae_view, moco_v2_views, vjepa_view
from v2r_core.video.batches import finish, make_loader
from v2r_core.video.clips import ClipDataset, DataSpec

Wanted = list[tuple[str, list[int]]]
"""Clips: path and frame numbers."""


@dataclass
class BareDecoder:
    """What a few lines of PyAV do: files stay open, a clip is sought by its key frame and decoded from there."""

    containers: dict[str, InputContainer] = field(default_factory=dict)

    def clip(self, path: str, frames: list[int]) -> int:
        """Decodes the clip's frames to RGB arrays, and returns their bytes."""
        if path not in self.containers:
            self.containers[path] = av.open(path)
        container = self.containers[path]
        stream = container.streams.video[0]
        assert stream.time_base is not None and stream.average_rate is not None
        ticks = 1 / (stream.time_base * stream.average_rate)
        container.seek(int(frames[0] * ticks), stream=stream)
        left = set(frames)
        size = 0
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round(frame.pts / ticks)
            if number in left:
                size += frame.to_ndarray(format="rgb24").nbytes
                left.remove(number)
                if not left:
                    break
        return size


def _decode_all(clips: Wanted) -> int:
    decoder = BareDecoder()
    return sum(decoder.clip(path, frames) for path, frames in clips)


@dataclass(frozen=True)
class Cost:
    """What some clips took, start of the processes included.

    Attributes:
        wall: clips per second.
        cpu: clips per second of processor time, of all processes together: what other load on the machine spoils less.
    """

    wall: float
    cpu: float


def _processor_time() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _timed(work: Callable[[], int]) -> Cost:
    start, cpu = time.perf_counter(), _processor_time()
    clips = work()
    return Cost(clips / (time.perf_counter() - start), clips / (_processor_time() - cpu))


def _bare(clips: Wanted, processes: int) -> int:
    pool = multiprocessing.get_context("fork").Pool(processes)
    pool.map(_decode_all, [clips[number::processes] for number in range(processes)], chunksize=1)
    pool.close()
    pool.join()
    return len(clips)


def _ours(dataset: ClipDataset, batch: int, processes: int, steps: int, names: list[str]) -> int:
    """Leaves the names of the clips in `names`."""
    names.clear()
    for made in make_loader(dataset, batch, processes, steps=steps):
        names += finish(made)["names"]
    return len(names)


def _compare(spec: DataSpec, batch: int, steps: int, processes: int, rounds: int) -> dict[str, float]:
    ours, bare, cached = [], [], []
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = ClipDataset([CLIPS], spec)
        kept = ClipDataset([CLIPS], spec, cache=folder)
        for _ in range(rounds):
            cached.append(_timed(lambda: _ours(kept, batch, processes, steps, names)))
            ours.append(_timed(lambda: _ours(dataset, batch, processes, steps, names)))
            clips: Wanted = []
            for name in names:
                path, _, first = name.rpartition("#")
                clips.append((path, [int(first) + index * spec.stride for index in range(spec.frames)]))
            bare.append(_timed(lambda clips=clips: _bare(clips, processes)))  # type: ignore[misc]

    def ratio(of: Callable[[Cost], float], measured: list[Cost]) -> float:
        return statistics.median(of(mine) / of(theirs) for mine, theirs in zip(measured, bare, strict=True))

    return {
        "loader_per_s": statistics.median(cost.wall for cost in ours),
        "cached_per_s": statistics.median(cost.wall for cost in cached),
        "bare_per_s": statistics.median(cost.wall for cost in bare),
        "ratio": ratio(lambda cost: cost.wall, ours),
        "cpu_ratio": ratio(lambda cost: cost.cpu, ours),
        "cached_ratio": ratio(lambda cost: cost.wall, cached),
    }


def measure(processes: int = 2, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Examples per second of the loader, without and with a cache, over bare decoding: medians of rounds in turn.

    The shipped clips have 640 x 480 pixels and a key frame every 30 frames; views have 224 x 224. Bare decoding gives
    RGB arrays of the frames that the loader took, in the loader's order, and does nothing with them.

    Args:
        processes: that decode.
        rounds: how often each is measured.
    """
    # This process does little, and more threads of it would only stand in the way of the others.
    torch.set_num_threads(1)
    return {
        "vjepa, 16 frames, stride 4": _compare(DataSpec(vjepa_view(), 16, 4), 16, 10, processes, rounds),
        "mae, 1 view": _compare(DataSpec(mae_view()), 64, 10, processes, rounds),
        "moco v2, 2 views": _compare(DataSpec(moco_v2_views()), 64, 10, processes, rounds),
    }


if __name__ == "__main__":
    result = measure()
    out = Path("out/bench")
    out.mkdir(parents=True, exist_ok=True)
    (out / "loader.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
