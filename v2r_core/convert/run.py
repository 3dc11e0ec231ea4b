"""Converts: one source of episodes after the other into one sink."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from v2r_core.convert.journal import EpisodeJournal, episode_key, recording_key
from v2r_core.convert.lerobot_sink import LeRobotSink
from v2r_core.convert.parts import ConvertError, Episode, Layout, LeftOut, Sink, Source, Wishes
from v2r_core.convert.sources import Item, Kind, find_items, overlaps
from v2r_core.label.partial import PartialFolder
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
        resumed: of the episodes, how many a run that died had finished.
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
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    tasks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def convert(task: ConvertTask, on_progress: Callable[[int, int], None] | None = None) -> Converted:
    """Converts a recording, or a folder of them, without ever holding an episode in memory.

    The result appears under its name when it is complete. A recording that cannot be read is left out, with the episode
    in which that came up; its episodes before that one stay.

    Finished episodes also lie in a journal beside the result, `OUT.partial`, which a run that ends early leaves there.
    One that is started again takes over those of recordings and wishes that are still the same, and comes to the same
    end: datasets and bags bit for bit, videos frame for frame (where it looks ahead, libx264 itself does not always
    give the same bytes). An episode in the middle begins anew: an encoder cannot be put into the state that it was in.

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
        self._journal = EpisodeJournal(PartialFolder(task.out, task.force).journal)
        self._sink: Sink | None = None
        self._done = 0

    def take(self, item: Item) -> None:
        """Writes the episodes of a recording, or says why not."""
        layout, before = self._result.layout, self._result.episodes
        wishes = self._task.wishes
        fps = wishes.fps or (layout.fps if layout is not None else None)
        key = self._key(item, fps)
        try:
            source = self._journal.recording(key) or item.open(wishes, fps)
            try:
                episodes = self._write(source, key)
            finally:
                source.close()
            self._note(source.left_out)
            self._journal.end_recording(key, source.layout, source.left_out, episodes)
        except (ConvertError, VideoError) as error:
            if self._sink is not None:
                self._sink.discard()
            if self._task.strict or self._result.recordings == 1:
                if self._sink is not None:
                    # Nobody will need it: until something changes, this recording fails again.
                    self._journal.forget(key)
                raise
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
        """Leaves nothing but the journal."""
        if self._sink is not None:
            self._sink.abort()

    def _key(self, item: Item, fps: int | None) -> str:
        """All that decides what a recording becomes."""
        task, place = self._task, self._sink.place() if self._sink is not None else ()
        return recording_key(version("v2r_ros"), task.to, task.raw, item.looks(), asdict(task.wishes), fps, place)

    def _write(self, source: Source, key: str) -> list[Episode]:
        result = self._result
        if result.layout is None:
            self._sink = _make_sink(self._task, source.layout, self._journal)
            result.layout = source.layout
        result.layout.check_same(source.layout)
        assert self._sink is not None
        episodes = [replace(each, key=episode_key(key, place)) for place, each in enumerate(source.episodes())]
        for episode in episodes:
            if self._sink.recall(episode):
                episode.skip()
                result.resumed += 1
            else:
                self._write_one(self._sink, episode)
            result.frames += episode.length
            result.episodes += 1
            result.tasks[episode.task] += 1
            self._tell(0)
        return episodes

    def _write_one(self, sink: Sink, episode: Episode) -> None:
        sink.begin(episode)
        for place, sample in enumerate(episode.samples()):
            sink.add(sample)
            self._tell(place + 1)
        sink.end()

    def _tell(self, frames: int) -> None:
        """Says how far it is: so many frames of an episode that is not finished."""
        if self._on_progress is not None:
            self._on_progress(self._result.frames + frames, self._done)

    def _note(self, left_out: LeftOut) -> None:
        total = self._result.left_out
        total.frames.update(left_out.frames)
        total.topics |= left_out.topics
        total.cuts += left_out.cuts


def _make_sink(task: ConvertTask, layout: Layout, journal: EpisodeJournal) -> Sink:
    # Each brings libraries of its own, which the others do not need.
    if task.to == "lerobot":
        return LeRobotSink(task.out, layout, task.force, journal)
    if task.to == "videos":
        from v2r_core.convert.videos_sink import VideosSink  # noqa: PLC0415

        return VideosSink(task.out, replace(layout, vectors={}), task.force, {task.source}, journal)
    from v2r_core.convert.bag_sink import BagSink  # noqa: PLC0415

    return BagSink(task.out, layout, task.force, {task.source}, task.raw, journal)
