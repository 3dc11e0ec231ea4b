"""Converts: one source of episodes after the other into one sink."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from v2r_core.convert.lerobot_sink import LeRobotSink
from v2r_core.convert.parts import ConvertError, Layout, LeftOut, Sink, Source, Wishes
from v2r_core.convert.sources import Item, Kind, find_items, overlaps
from v2r_core.video.video import VideoError


@dataclass(frozen=True)
class ConvertTask:
    """What to convert into what.

    Attributes:
        source: a rosbag2, a LeRobotDataset v3, a video, or a folder of bags or videos, labelled or not.
        out: what it becomes; does not exist.
        to: kind of that.
        wishes: how.
        raw: write images into a bag as they are, not as JPEG.
        force: replace `out` if it is there.
        strict: stop at the first recording that cannot be converted.
    """

    source: Path
    out: Path
    to: Kind
    wishes: Wishes = field(default_factory=Wishes)
    raw: bool = False
    force: bool = False
    strict: bool = False


@dataclass
class Converted:
    """What came of it.

    Attributes:
        kind: of the source.
        recordings: bags, videos or episodes of a dataset that there were.
        layout: what every frame has.
        episodes: that were written.
        frames: of these.
        failed: why a recording, or the rest of it, was left out, by its name.
        left_out: what was left out of the others.
        tasks: episodes by their task.
        seconds: wall time.
    """

    kind: Literal["bag", "lerobot", "videos"]
    recordings: int
    layout: Layout | None = None
    episodes: int = 0
    frames: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    tasks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def convert(task: ConvertTask, on_progress: Callable[[int, int], None] | None = None) -> Converted:
    """Converts a recording, or a folder of them, without ever holding an episode in memory.

    The result appears under its name when it is complete. A recording that cannot be read is left out, with the episode
    in which that came up; its episodes before that one stay.

    Args:
        task: what and how.
        on_progress: called with (frames written, recordings done).

    Raises:
        ConvertError, VideoError: nothing could be converted; with `strict`, one recording could not.
        FileExistsError: `out` is there.
        OSError: `out` cannot be written.
    """
    start = time.perf_counter()
    kind, items = find_items(task.source, task.wishes)
    if kind == task.to:
        raise ConvertError(f"{task.source}: is a {kind} already; nothing to convert with --to {task.to}")
    overlaps(task.source, task.out, task.to, task.force)
    run = _Run(task, Converted(kind, len(items)), on_progress)
    try:
        for item in items:
            run.take(item)
        return run.finish(time.perf_counter() - start)
    except BaseException:
        run.abort()
        raise


class _Run:
    """A sink, which is made when the first recording says what frames have."""

    def __init__(self, task: ConvertTask, result: Converted, on_progress: Callable[[int, int], None] | None) -> None:
        self._task, self._result, self._on_progress = task, result, on_progress
        self._sink: Sink | None = None
        self._done = 0

    def take(self, item: Item) -> None:
        """Writes the episodes of a recording, or says why not."""
        layout, before = self._result.layout, self._result.episodes
        wishes = self._task.wishes
        try:
            source = item.open(wishes, wishes.fps or (layout.fps if layout is not None else None))
            try:
                self._write(source)
            finally:
                source.close()
            self._note(source.left_out)
        except (ConvertError, VideoError) as error:
            if self._task.strict or self._result.recordings == 1:
                raise
            if self._sink is not None:
                self._sink.discard()
            written = self._result.episodes - before
            self._result.failed[item.name] = str(error) + (f"; {written} episodes before that stay" if written else "")
        self._done += 1

    def finish(self, seconds: float) -> Converted:
        """Completes the result.

        Raises:
            ConvertError: no recording could be converted.
        """
        result = self._result
        if self._sink is None or not result.episodes:
            name, reason = next(iter(result.failed.items()), (str(self._task.source), "it has no episode"))
            raise ConvertError(f"{name}: {reason}; none of {result.recordings} recordings could be converted")
        self._sink.finish()
        self._sink = None
        result.seconds = seconds
        return result

    def abort(self) -> None:
        """Leaves nothing."""
        if self._sink is not None:
            self._sink.abort()

    def _write(self, source: Source) -> None:
        result = self._result
        if result.layout is None:
            self._sink = _make_sink(self._task, source.layout)
            result.layout = source.layout
        result.layout.check_same(source.layout)
        assert self._sink is not None
        for episode in source.episodes():
            self._sink.begin(episode)
            frames = 0
            for sample in episode.samples():
                self._sink.add(sample)
                frames += 1
                if self._on_progress is not None:
                    self._on_progress(result.frames + frames, self._done)
            self._sink.end()
            result.frames += frames
            result.episodes += 1
            result.tasks[episode.task] += 1

    def _note(self, left_out: LeftOut) -> None:
        total = self._result.left_out
        total.frames.update(left_out.frames)
        total.topics |= left_out.topics
        total.cuts += left_out.cuts


def _make_sink(task: ConvertTask, layout: Layout) -> Sink:
    # Each brings libraries of its own, which the others do not need.
    if task.to == "lerobot":
        return LeRobotSink(task.out, layout, task.force)
    if task.to == "videos":
        from v2r_core.convert.videos_sink import VideosSink  # noqa: PLC0415

        return VideosSink(task.out, replace(layout, vectors={}), task.force, {task.source})
    from v2r_core.convert.bag_sink import BagSink  # noqa: PLC0415

    return BagSink(task.out, layout, task.force, {task.source}, task.raw)
