"""Videos and episodes of a LeRobotDataset as sources: both are videos with numbers beside their frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.grid import SECOND_NS, newest_at, sample_instants, summed
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
)
from v2r_core.convert.provenance import read_starts
from v2r_core.label.lerobot_copy import LABELS, NEXT_REWARD, RECORD
from v2r_core.label.lerobot_writer import COUNTERS
from v2r_core.label.table import Labels
from v2r_core.look.labelled_lerobot import read_head
from v2r_core.look.labelled_set import NotLabelledError
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video

CAMERA = "camera"
"""What the pictures of a video are called where nothing else is wished for."""


class _OneEpisode:
    """Frames of one or several cameras with the same stamps: see `parts.Source`.

    Attributes:
        layout: what its frames have.
        left_out: nothing: all of it is converted.
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
        stamps = np.rint(next(iter(self._videos.values())).stamps * SECOND_NS).astype(np.int64)
        ascending = np.maximum.accumulate(stamps)
        instants = sample_instants(ascending, self.layout.fps)
        at = newest_at(ascending, instants)
        return [Episode(self._name, self._task, self._start_ns, len(at), lambda: self._samples(at))]

    def _samples(self, at: NDArray[np.int64]) -> Iterator[Sample]:
        labels = self._labels
        if labels is not None:
            rewards = summed(labels[:, 0], at)
            labels = labels[at]
            labels[:, 0] = rewards
        with ExitStack() as stack:
            frames = {name: stack.enter_context(_held(video)) for name, video in self._videos.items()}
            newest: dict[str, Frame] = {}
            read = -1
            for place, number in enumerate(at):
                while read < number:
                    newest = {name: next(each) for name, each in frames.items()}
                    read += 1
                vectors = {name: values[number] for name, values in self._columns.items()}
                yield Sample(newest, vectors, None if labels is None else label_row(labels[place]))


def _held(video: Video) -> closing[Any]:
    return closing(iter(video))


class VideoSource(_OneEpisode):
    """One video, labelled or not, as an episode."""

    def __init__(self, path: Path, name: str, labels: Labels | None, wishes: Wishes, fps: int | None) -> None:
        """Opens it.

        Args:
            path: what `open_video` takes.
            name: for people.
            labels: one row a frame.
            wishes: what to call it.
            fps: frames a second; None: its own.

        Raises:
            VideoError: it cannot be read.
            ConvertError: its rate is not known, or there are not as many labels as frames.
        """
        video = open_video(path)
        super().__init__(name, {}, video.close)
        try:
            camera = IMAGES + (wishes.images[0] if wishes.images else CAMERA).removeprefix(IMAGES)
            self._videos = {camera: video}
            height, width = video[0].shape[:2]
            head = None
            if labels is not None:
                head, self._labels = _head_of(labels, camera), _rows_of(labels)
                _check_length(name, len(video), len(labels))
            self.layout = Layout(fps or own_rate(name, video.fps), {camera: (height, width)}, {}, head)
            self._task = wishes.task or ""
        except BaseException:
            video.close()
            raise


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
                columns = [folder.column(number, f"v2r.{name}").reshape(length) for name in LABEL_FIELDS]
                self._labels = np.stack([column.astype(np.float64) for column in columns], axis=1)
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
    if not (folder.path / RECORD).is_file() or any(f"v2r.{name}" not in folder.features for name in LABEL_FIELDS):
        return None
    try:
        head = read_head(folder.path)
    except NotLabelledError as error:
        raise ConvertError(str(error)) from error
    return LabelHead(head.camera, head.model, head.model_sha256, head.reward, head.reward_kind)


def _head_of(labels: Labels, camera: str) -> LabelHead:
    origin = labels.origin
    return LabelHead(camera, origin.model, origin.model_sha256, origin.reward, origin.kind)


def _rows_of(labels: Labels) -> NDArray[np.float64]:
    columns = [getattr(labels.curve, name) for name in LABEL_FIELDS[:-1]]
    return np.stack([*columns, labels.status.astype(np.float64)], axis=1)


def _check_length(name: str, frames: int, labels: int) -> None:
    if frames != labels:
        raise ConvertError(f"{name}: {frames} frames and {labels} labels; the video has changed, label it again")
