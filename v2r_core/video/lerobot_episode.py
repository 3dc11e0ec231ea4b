"""One episode of a LeRobotDataset v3 as a video: a part of an mp4 that holds many, or images in a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.files import VideoFile
from v2r_core.video.lerobot_parquet import ParquetRows
from v2r_core.video.pixels import ImageError, decode_compressed
from v2r_core.video.resize import Frame
from v2r_core.video.video import VideoError, check_shape, mean_rate, resolve_index

IMAGES_AT_ONCE = 8
"""Encoded images that are read from a Parquet file at a time."""


class _Episode:
    """What both kinds share; see `video.source.Video`."""

    def __init__(self, name: str, stamps: NDArray[np.float64], fps: float) -> None:
        if len(stamps) == 0:
            raise VideoError(f"{name}: no frame in this episode; leave it out")
        if not (np.diff(stamps) > 0).all():
            raise VideoError(f"{name}: timestamps of its frames do not rise; write the dataset again")
        self.name = name
        self.stamps = stamps
        rate = mean_rate(stamps)
        # Stamps of a dataset are float32: their mean rate is a little off what was meant.
        self.fps = fps if math.isnan(rate) or math.isclose(rate, fps, rel_tol=1e-3) else rate

    def __len__(self) -> int:
        return len(self.stamps)

    def close(self) -> None:
        """See `Video`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EpisodeInVideo(_Episode):
    """An episode whose frames lie in an mp4: see `video.source.Video`."""

    def __init__(
        self, name: str, path: Path, stamps: NDArray[np.float64], span: tuple[float, float], fps: float, lean: bool
    ) -> None:
        """Opens the mp4 and finds the frames.

        Args:
            name: of the episode.
            path: the mp4.
            stamps: of the frames from the beginning of the episode, float64 (T,) seconds.
            span: where the episode begins and ends in the mp4, in seconds.
            fps: of the dataset, for an episode whose stamps say nothing else.
            lean: see `open_video`.

        Raises:
            VideoError: the mp4 is missing or damaged, or has no frame at one of the times.
        """
        super().__init__(name, stamps, fps)
        if not path.is_file():
            raise VideoError(f"{name}: {path} is missing; copy the dataset again, with its videos")
        tolerance = 0.5 / fps
        # An mp4 holds many episodes: to look through all of it for each of them would take long.
        part = span[0] - tolerance, span[0] + float(stamps[-1]) + tolerance
        self._file = VideoFile(path, 1, 0, part) if lean else VideoFile(path, span=part)
        try:
            self._numbers = _nearest(name, path, self._file.stamps, span, stamps, tolerance)
        except VideoError:
            self._file.close()
            raise

    def __getitem__(self, index: SupportsIndex) -> Frame:
        number = resolve_index(index, len(self), self.name)
        return self._file[int(self._numbers[number])]

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        self._file.close()


def _nearest(
    name: str,
    path: Path,
    times: NDArray[np.float64],
    span: tuple[float, float],
    stamps: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.int64]:
    """Numbers of the frames of the mp4 at the times of the episode."""
    wanted = span[0] + stamps
    if wanted[-1] > span[1] + tolerance:
        raise VideoError(
            f"{name}: its last frame is at {wanted[-1]:.3f} s of {path}, its part of it ends at {span[1]:.3f} s; "
            "write the dataset again"
        )
    after = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    numbers = np.where(wanted - times[before] <= times[after] - wanted, before, after)
    far = np.abs(times[numbers] - wanted) > tolerance
    if far.any():
        raise VideoError(
            f"{name}: {path} has no frame at {wanted[far][0]:.3f} s, those around there are from {times[0]:.3f} to "
            f"{times[-1]:.3f} s; copy the video again"
        )
    return numbers.astype(np.int64)


class EpisodeOfImages(_Episode):
    """An episode whose frames are PNG or JPEG files in the cells of a Parquet file: see `video.source.Video`."""

    def __init__(self, name: str, path: Path, camera: str, start: int, stamps: NDArray[np.float64], fps: float) -> None:
        """Opens the Parquet file.

        Args:
            name: of the episode.
            path: the Parquet file.
            camera: the column.
            start: row of the first frame.
            stamps: see `EpisodeInVideo`.
            fps: see `EpisodeInVideo`.

        Raises:
            VideoError: the file is missing or damaged, or its first image is.
        """
        super().__init__(name, stamps, fps)
        self._path, self._camera, self._start = path, camera, start
        self._shape: tuple[int, ...] | None = None
        self._reader: _Cells | None = _Cells(path, camera)
        try:
            self._shape = self._frame(self._reader, 0).shape
        except VideoError:
            self._reader.close()
            raise

    def __getitem__(self, index: SupportsIndex) -> Frame:
        number = resolve_index(index, len(self), self.name)
        if self._reader is None:
            raise VideoError(f"{self.name}: closed; open it again")
        return self._frame(self._reader, number)

    def __iter__(self) -> Iterator[Frame]:
        reader = _Cells(self._path, self._camera)
        try:
            for index in range(len(self)):
                yield self._frame(reader, index)
        finally:
            reader.close()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _frame(self, reader: _Cells, index: int) -> Frame:
        data = reader.cell(self._start + index)
        if data is None:
            raise VideoError(
                f"{self.name}: image {index} is not in {self._path}, only its path; embed the images, or write the "
                "dataset again"
            )
        try:
            frame = decode_compressed(data)
        except ImageError as error:
            raise VideoError(f"{self.name}: image {index} in {self._path}: {error}") from error
        if self._shape is not None:
            check_shape(self.name, index, frame, self._shape)
        return frame


class _Cells:
    """One open Parquet file and a position in it, which moves forward cheaply."""

    def __init__(self, path: Path, column: str) -> None:
        self._rows = ParquetRows(path)
        self._column = column
        self._values: Iterator[tuple[int, Any]] = iter(())
        self._next = -1

    def cell(self, row: int) -> bytes | None:
        """The encoded image of a row; None if there is none."""
        if not self._rows.start_before(row) <= self._next <= row:
            self._values = self._rows.values(self._column, IMAGES_AT_ONCE, row)
        for number, value in self._values:
            self._next = number + 1
            if number == row:
                found = value.as_py()
                data: bytes | None = found["bytes"] if isinstance(found, dict) else found
                return data
        self._next = -1
        raise VideoError(f"{self._rows.path}: ends before row {row}; copy it again")

    def close(self) -> None:
        self._rows.close()
