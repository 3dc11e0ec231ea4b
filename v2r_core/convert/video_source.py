"""Videos and episodes of a LeRobotDataset as sources: both are videos with numbers beside their frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.grid import SECOND_NS, median_rate, newest_at, sample_instants
from v2r_core.convert.parts import (
    IMAGES,
    LABEL_FIELDS,
    ConvertError,
    Episode,
    LabelHead,
    Layout,
    LeftOut,
    Sample,
    Vector,
    Wishes,
    label_row,
    no_label,
    resampled,
)
from v2r_core.convert.provenance import read_starts
from v2r_core.deploy.stream import Status
from v2r_core.label.lerobot_copy import LABELS, NEXT_REWARD, RECORD
from v2r_core.label.lerobot_writer import COUNTERS
from v2r_core.label.table import Labels
from v2r_core.look.labelled_lerobot import read_head
from v2r_core.look.labelled_set import NotLabelledError
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video

_ALWAYS = ("reward", "value", "progress", "uncertainty", "status")
"""Fields that every labelled dataset has; the others may be missing."""

CAMERA = "camera"
"""What the pictures of a video are called where nothing else is wished for."""


class _OneEpisode:
    """Frames of one or several cameras: see `parts.Source`.

    At each instant it has the newest picture of every camera, as long as all cameras last.

    Attributes:
        layout: what its frames have.
        left_out: frames for which not all cameras last.
    """

    def __init__(self, name: str, videos: Mapping[str, Video], close: Callable[[], None]) -> None:
        self._name, self._videos, self._close = name, videos, close
        self.left_out = LeftOut()
        self.layout: Layout
        self._task, self._start_ns = "", 0
        self._columns: dict[str, NDArray[np.float32]] = {}
        self._labels: NDArray[np.float64] | None = None

    def close(self) -> None:
        """See `parts.Source`."""
        self._close()

    def episodes(self) -> Sequence[Episode]:
        """The episode."""
        stamps = {name: _nanoseconds(video) for name, video in self._videos.items()}
        instants = sample_instants(next(iter(stamps.values())), self.layout.fps)
        instants = self._while_all_last(instants, stamps)
        at = {name: newest_at(each, instants) for name, each in stamps.items()}
        return [Episode(self._name, self._task, self._start_ns, len(instants), lambda: self._samples(at))]

    def _while_all_last(
        self, instants: NDArray[np.int64], stamps: Mapping[str, NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """The instants at which every camera has a picture that is not older than its last one is shown."""
        for name, each in stamps.items():
            rate = median_rate(each)
            shown = instants[-1] if np.isnan(rate) else each[-1] + round(SECOND_NS / rate)
            inside = (instants >= each[0]) & (instants <= shown)
            self.left_out.frames[f"before the begin or after the end of {name}"] += int((~inside).sum())
            instants = instants[inside]
            if not len(instants):
                raise ConvertError(f"{self._name}: {name} and the cameras before it have no time in common")
        return instants

    def _samples(self, at: Mapping[str, NDArray[np.int64]]) -> Iterator[Sample]:
        labels, first = self._labels, next(iter(at.values()))
        if labels is not None:
            labelled = at[self.layout.head.camera] if self.layout.head is not None else first
            labels = resampled(labels, labelled)
        with ExitStack() as stack:
            frames = {name: _Newest(stack.enter_context(_held(video))) for name, video in self._videos.items()}
            for place, number in enumerate(first):
                newest = {name: each.at(at[name][place]) for name, each in frames.items()}
                vectors = {name: values[number] for name, values in self._columns.items()}
                yield Sample(newest, vectors, None if labels is None else label_row(labels[place]))


class _Newest:
    """Frames of a video by their numbers, which never descend."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames, self._read = frames, -1
        self._frame: Frame | None = None

    def at(self, number: int) -> Frame:
        while self._frame is None or self._read < number:
            self._frame = next(self._frames)
            self._read += 1
        return self._frame


def _nanoseconds(video: Video) -> NDArray[np.int64]:
    """(N,) stamps of the frames from 0, never descending."""
    stamps = np.rint((video.stamps - video.stamps[0]) * SECOND_NS).astype(np.int64)
    found: NDArray[np.int64] = np.maximum.accumulate(stamps)
    return found


def _held(video: Video) -> closing[Any]:
    return closing(iter(video))


class CamerasSource(_OneEpisode):
    """Videos of one or several cameras, labelled or not, as an episode. Their times count from their own beginnings."""

    def __init__(
        self,
        name: str,
        videos: Mapping[str, Path],
        labelled: str | None,
        labels: Labels | None,
        wishes: Wishes,
        fps: int | None,
    ) -> None:
        """Opens them.

        Args:
            name: for people.
            videos: what `open_video` takes, by camera; the first one has the clock.
            labelled: the camera that has labels.
            labels: one row a frame of it.
            wishes: the task.
            fps: frames a second; None: those of the first camera.

        Raises:
            VideoError: one cannot be read.
            ConvertError: the rate is not known, or there are not as many labels as frames.
        """
        stack = ExitStack()
        super().__init__(name, {}, stack.close)
        try:
            opened = {IMAGES + camera: stack.enter_context(open_video(path)) for camera, path in videos.items()}
            self._videos = opened
            head = None
            if labels is not None:
                camera = f"{IMAGES}{labelled}"
                head, self._labels = _head_of(labels, camera), _rows_of(labels)
                _check_length(name, len(opened[camera]), len(labels))
            sizes = {camera: video[0].shape for camera, video in opened.items()}
            rate = fps or own_rate(name, next(iter(opened.values())).fps)
            self.layout = Layout(rate, {camera: (shape[0], shape[1]) for camera, shape in sizes.items()}, {}, head)
            self._task = wishes.task or ""
        except BaseException:
            stack.close()
            raise


class VideoSource(CamerasSource):
    """One video as an episode."""

    def __init__(self, path: Path, name: str, labels: Labels | None, wishes: Wishes, fps: int | None) -> None:
        """Opens it; see `CamerasSource`.

        Args:
            path: what `open_video` takes.
            name: for people.
            labels: one row a frame.
            wishes: what to call it, and the task.
            fps: frames a second; None: its own.
        """
        camera = (wishes.images[0] if wishes.images else CAMERA).removeprefix(IMAGES)
        super().__init__(name, {camera: path}, camera, labels, wishes, fps)


@dataclass(frozen=True)
class Dataset:
    """A LeRobotDataset v3 and what else is known of its episodes.

    Attributes:
        folder: the dataset.
        head: None: it is not labelled.
        starts: see `read_starts`.
    """

    folder: LeRobotFolder
    head: LabelHead | None
    starts: Mapping[int, int]


def open_dataset(path: Path) -> Dataset:
    """Reads what is said about a dataset, once for all its episodes.

    Raises:
        VideoError: the dataset cannot be read.
        ConvertError: what is said about its labels or its origin is damaged.
    """
    folder = LeRobotFolder.open(path)
    return Dataset(folder, _dataset_head(folder), read_starts(path))


class DatasetEpisode(_OneEpisode):
    """An episode of a LeRobotDataset v3, labelled or not."""

    def __init__(self, dataset: Dataset, number: int, wishes: Wishes, fps: int | None) -> None:
        """Opens it.

        Args:
            dataset: of `open_dataset`.
            number: of the episode.
            wishes: which cameras, and the task.
            fps: frames a second; None: those of the dataset.

        Raises:
            VideoError: the episode cannot be read.
            ConvertError: no such camera.
        """
        stack, folder, head = ExitStack(), dataset.folder, dataset.head
        super().__init__(f"{folder.path.name}#{number}", {}, stack.close)
        try:
            self._videos = {
                name: stack.enter_context(folder.video(number, name)) for name in _cameras(folder, wishes.images)
            }
            vectors = _vectors(folder, head is not None)
            length = folder.length(number)
            self._columns = {
                name: folder.column(number, name).astype(np.float32).reshape(length, -1) for name in vectors
            }
            if head is not None and head.camera in self._videos:
                self._labels = _dataset_rows(folder, number)
            else:
                head = None
            sizes = {name: _size(folder.features[name].shape) for name in self._videos}
            self.layout = Layout(fps or own_rate(self._name, folder.fps), sizes, vectors, head)
            self._task = wishes.task if wishes.task is not None else "; ".join(folder.tasks(number))
            self._start_ns = dataset.starts.get(number, 0)
        except BaseException:
            stack.close()
            raise


def own_rate(name: str, fps: float) -> int:
    """The rate of a recording as a whole number.

    Raises:
        ConvertError: it has none.
    """
    if not 0.5 < fps < 1000:  # NaN included
        raise ConvertError(f"{name}: {fps:.3g} frames a second; give --fps")
    return round(fps)


def _cameras(folder: LeRobotFolder, wished: Sequence[str]) -> list[str]:
    if not wished:
        if not folder.cameras:
            raise ConvertError(f"{folder.path}: no camera in this dataset, only {', '.join(folder.features)}")
        return list(folder.cameras)
    names = [name if name in folder.cameras else IMAGES + name for name in wished]
    if missing := [name for name in names if name not in folder.cameras]:
        raise ConvertError(f"{folder.path}: no camera {missing[0]!r}; its cameras are {', '.join(folder.cameras)}")
    return names


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a camera; some datasets say (3, H, W) of it, as torch has it."""
    first = 1 if shape[0] == len("RGB") and shape[-1] != len("RGB") else 0
    return shape[first], shape[first + 1]


def _vectors(folder: LeRobotFolder, labelled: bool) -> dict[str, Vector]:
    """The features of numbers that are neither counters nor labels."""
    passed_over = {*COUNTERS, *((*LABELS, NEXT_REWARD) if labelled else ())}
    vectors = {}
    for name, feature in folder.features.items():
        if feature.is_camera or feature.dtype == "string" or name in passed_over:
            continue
        length = int(np.prod(feature.shape))
        names = feature.names
        if isinstance(names, dict) and len(names) == 1:  # as in {"motors": ["shoulder", "elbow"]}
            names = next(iter(names.values()))
        flat = isinstance(names, list) and len(names) == length and all(isinstance(each, str) for each in names)
        vectors[name] = Vector(length, tuple(names) if flat and names is not None else None)
    return vectors


def _dataset_head(folder: LeRobotFolder) -> LabelHead | None:
    if not (folder.path / RECORD).is_file() or any(f"v2r.{name}" not in folder.features for name in _ALWAYS):
        return None
    try:
        head = read_head(folder.path)
    except NotLabelledError as error:
        raise ConvertError(str(error)) from error
    return LabelHead(head.camera, head.model, head.model_sha256, head.reward, head.reward_kind)


def _dataset_rows(folder: LeRobotFolder, number: int) -> NDArray[np.float64]:
    """The labels of an episode of T frames, (T, 8)."""
    length = folder.length(number)
    rows = np.tile(no_label(Status.OK), (length, 1))
    for place, name in enumerate(LABEL_FIELDS):
        if f"v2r.{name}" in folder.features:
            rows[:, place] = folder.column(number, f"v2r.{name}").reshape(length)
    return rows


def _head_of(labels: Labels, camera: str) -> LabelHead:
    origin = labels.origin
    return LabelHead(camera, origin.model, origin.model_sha256, origin.reward, origin.kind)


def _rows_of(labels: Labels) -> NDArray[np.float64]:
    columns = [getattr(labels.curve, name) for name in LABEL_FIELDS[:-1]]
    return np.stack([*columns, labels.status.astype(np.float64)], axis=1)


def _check_length(name: str, frames: int, labels: int) -> None:
    if frames != labels:
        raise ConvertError(f"{name}: {frames} frames and {labels} labels; the video has changed, label it again")
