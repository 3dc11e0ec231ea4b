"""A folder of videos as what a recording becomes: an mp4 an episode and camera, and a labelled folder of labels."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from v2r_core.convert.journal import EpisodeJournal
from v2r_core.convert.parts import IMAGES, LABEL_FIELDS, Episode, LabelHead, LabelRow, Layout, Sample
from v2r_core.label.partial import PartialFolder
from v2r_core.label.set_writer import LABELS, MANIFEST, ManifestLine, SetRecord
from v2r_core.label.table import LabelOrigin, Labels, write_labels
from v2r_core.label.video_sources import SET_FILE, measure
from v2r_core.rewards.reward import RewardCurve
from v2r_core.video.resize import Frame

_ENCODING = {"crf": "18", "preset": "veryfast"}
"""Options of libx264; of what is converted as little as possible is to be lost."""
VIDEOS = "videos"
"""Where the videos are in a labelled folder; an unlabelled one is the videos."""
_ROWS = "labels.npy"


class VideosSink:
    """Writes a folder of videos: see `parts.Sink`. Episode 3 of `observation.images.top` is top/episode_000003.mp4."""

    def __init__(self, out: Path, layout: Layout, force: bool, sources: set[Path], journal: EpisodeJournal) -> None:
        """Begins the folder.

        Args:
            out: the folder.
            layout: what frames have; only pictures and labels go into it.
            force: replace `out` if it is there.
            sources: what must not be replaced.
            journal: in the folder of what is not complete.

        Raises:
            FileExistsError: `out` is there, or another process is writing it.
        """
        self._out, self._layout, self._journal = out.absolute(), layout, journal
        self._partial = PartialFolder(out, force, sources)
        journal.open_in(self._partial)
        self._root = self._partial.product / VIDEOS if layout.head else self._partial.product
        self._root.mkdir(parents=True)
        self._count = 0
        self._open: dict[str, _Mp4] = {}
        self._episode: Episode | None = None
        self._labels: list[LabelRow] = []

    def place(self) -> tuple[int, ...]:
        """See `parts.Sink`."""
        return ()

    def recall(self, episode: Episode) -> bool:
        """See `parts.Sink`."""
        folder = self._journal.episode(episode.key)
        if folder is None:
            return False
        self._take_over(folder)
        return True

    def begin(self, episode: Episode) -> None:
        """See `parts.Sink`."""
        self._episode, self._labels = episode, []
        folder = self._journal.begin(episode.key)
        for number, camera in enumerate(self._layout.cameras):
            self._open[camera] = _Mp4(_video_file(folder, number), self._layout.fps)

    def add(self, sample: Sample) -> None:
        """See `parts.Sink`."""
        for camera, frame in sample.images.items():
            self._open[camera].add(frame)
        if sample.label is not None:
            self._labels.append(sample.label)

    def end(self) -> None:
        """See `parts.Sink`."""
        assert self._episode is not None
        for video in self._open.values():
            video.close()
        rows = [[getattr(row, field) for field in LABEL_FIELDS] for row in self._labels]
        np.save(self._journal.begun(self._episode.key) / _ROWS, np.array(rows, np.float64))
        self._take_over(self._journal.end(self._episode.key))
        self._open, self._episode = {}, None

    def discard(self) -> None:
        """See `parts.Sink`."""
        for video in self._open.values():
            video.abort()
        if self._episode is not None:
            self._journal.discard(self._episode.key)
        self._open, self._episode = {}, None

    def finish(self) -> None:
        """See `parts.Sink`."""
        head = self._layout.head
        if head is not None:
            record = SetRecord(
                kind="videos",
                root=str(self._out / VIDEOS),
                model=head.model,
                model_sha256=head.model_sha256,
                reward=head.reward,
                reward_kind=head.reward_kind,
            )
            (self._partial.product / SET_FILE).write_text(record.model_dump_json(indent=2) + "\n")
        self._partial.finish()
        self._partial.__exit__(None, None, None)

    def abort(self) -> None:
        """See `parts.Sink`."""
        self.discard()
        self._journal.tidy()
        self._partial.__exit__(None, None, None)

    def _name(self, camera: str) -> str:
        return f"{camera.removeprefix(IMAGES)}/episode_{self._count:06d}.mp4"

    def _take_over(self, folder: Path) -> None:
        """Gives the files of an episode in the journal, which stay there too, their final names."""
        for number, camera in enumerate(self._layout.cameras):
            path = self._root / self._name(camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(_video_file(folder, number), path)
        if self._layout.head is not None:
            self._write_labels(self._layout.head, np.load(folder / _ROWS, allow_pickle=False))
        self._count += 1

    def _write_labels(self, head: LabelHead, rows: NDArray[np.float64]) -> None:
        name = self._name(head.camera)
        columns = dict(zip(LABEL_FIELDS, rows.T, strict=True))
        length = len(rows)
        status = columns.pop("status").astype(np.int64)
        for counter in ("subgoal_index", "subgoal_count"):
            columns[counter] = columns[counter].astype(np.int64)
        curve = RewardCurve(**columns)
        origin = LabelOrigin(
            source=str(self._out / VIDEOS / name),
            name=name,
            reward=head.reward,
            kind=head.reward_kind,
            goal="",
            goal_source="",
            model=head.model,
            model_sha256=head.model_sha256,
        )
        stamps = np.arange(length) / self._layout.fps
        write_labels(self._partial.product / LABELS / f"{name}.parquet", Labels(origin, stamps, curve, status))
        size, mtime_ns = measure(self._root / name)
        # Another key than any that `v2r label` makes: it will label these videos anew if it is told to.
        line = ManifestLine(
            video=name, state="done", frames=length, seconds=0, error="", size=size, mtime_ns=mtime_ns, key="converted"
        )
        with (self._partial.product / MANIFEST).open("a") as file:
            file.write(line.model_dump_json() + "\n")


def _video_file(folder: Path, number: int) -> Path:
    return folder / f"camera_{number}.mp4"


def _link(path: Path, name: Path) -> None:
    """Another name for a file; a copy where the file system has no second names."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


class _Mp4:
    """H.264 in an mp4, written as frames come."""

    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._fps = path, fps
        self._container: OutputContainer = av.open(
            str(path), "w", format="mp4", options={"movflags": "faststart", "fflags": "bitexact"}
        )
        self._stream: VideoStream | None = None

    def add(self, frame: Frame) -> None:
        self._container.mux(self._started(frame).encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def abort(self) -> None:
        # What an encoder says about a file that is thrown away must not hide why it is.
        with suppress(Exception):
            self.close()
        self._path.unlink(missing_ok=True)

    def _started(self, frame: Frame) -> VideoStream:
        if self._stream is None:
            stream = self._container.add_stream("libx264", rate=self._fps, options=dict(_ENCODING))
            stream.height, stream.width = frame.shape[:2]
            # Colour of half the resolution needs even sides.
            stream.pix_fmt = "yuv444p" if frame.shape[0] % 2 or frame.shape[1] % 2 else "yuv420p"
            # What several threads make of the same frames depends on their number.
            stream.codec_context.thread_count = 1
            self._stream = stream
        return self._stream
