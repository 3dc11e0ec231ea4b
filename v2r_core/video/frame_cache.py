"""Decoded frames in files that are mapped into memory, for short videos that are read again and again.

A frame takes height x width x 3 bytes: 0.26 MB at 256 x 341, so that an hour at 30 frames/s takes 28 GB.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsIndex

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video, split_episode
from v2r_core.video.video import Video, VideoError, mean_rate, resolve_index

_DATASET_SUFFIXES = (".parquet", ".mp4")


class CacheError(RuntimeError):
    """Decoded frames cannot be kept. No OSError, which a video that cannot be read raises and which is skipped."""


class CachedVideo:
    """A video whose frames were decoded before: see `video.source.Video`.

    Args:
        frames: a file that `open_cached` made; the file next to it tells the rest.
    """

    def __init__(self, frames: Path) -> None:
        about = json.loads(_about(frames).read_text())
        self.name: str = about["name"]
        self.stamps: NDArray[np.float64] = np.array(about["stamps"], np.float64)
        self.fps = mean_rate(self.stamps)
        self._damaged: dict[int, str] = {int(index): reason for index, reason in about["damaged"].items()}
        self._frames: NDArray[np.uint8] = np.load(frames, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: SupportsIndex) -> Frame:
        number = resolve_index(index, len(self), self.name)
        if number in self._damaged:
            raise VideoError(self._damaged[number])
        # A plain array: what is cut out of a memmap would remain one, with slow operators.
        return np.asarray(self._frames[number])

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Nothing to do: the mapping ends with the last array into it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_cached(source: str, folder: Path, side: int) -> CachedVideo:
    """Opens the decoded frames of a video, and decodes them first where they are missing or the video has changed.

    Several processes may do this at once: one decodes, the others wait for it.

    Args:
        source: what `open_video` takes.
        folder: where the frames are kept.
        side: frames are shrunk, antialiased, until their shorter side has this many pixels; smaller ones stay.

    Raises:
        VideoError: the video, or its first frame, cannot be read. A frame behind it is noted as damaged.
        FileNotFoundError: no such video.
        CacheError: the folder cannot be written to, or is full.
    """
    frames = folder / f"{_digest(source, side)}-{_digest(source_state(source))}.npy"
    if not frames.exists():
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not frames.exists():
                _build(source, frames, side)
    return CachedVideo(frames)


def _build(source: str, frames: Path, side: int) -> None:
    """Writes the frames under another name first, and gives them theirs at the very end: then all is there."""
    partial = frames.with_suffix(".partial")
    try:
        with open_video(source) as video, _writing(frames.parent):
            damaged: dict[int, str] = {}
            _write(partial, _decoded(video, side, damaged), len(video))
            about = {"source": source, "name": video.name, "stamps": video.stamps.tolist(), "damaged": damaged}
            _about(frames).write_text(json.dumps(about))
            partial.replace(frames)
    finally:
        partial.unlink(missing_ok=True)
    for old in frames.parent.glob(f"{frames.name.split('-')[0]}-*"):
        if old not in (frames, _about(frames)):
            old.unlink(missing_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{folder}: decoded frames cannot be kept there ({error}); make room, give another folder, or none"
        ) from error


def _decoded(video: Video, side: int, damaged: dict[int, str]) -> Iterator[Frame]:
    """All frames of the video at their final size; those that cannot be read are black and noted."""
    first = _shrink(video[0], side)
    yield first
    for index in range(1, len(video)):
        try:
            yield _shrink(video[index], side)
        except VideoError as error:
            damaged[index] = str(error)
            yield np.zeros_like(first)


def _write(path: Path, frames: Iterator[Frame], count: int) -> None:
    """Writes a .npy file by hand: assigning to a mapping ends in a crash, not in an error, when the disk is full."""
    first = next(frames)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
        npy.write_array_header_1_0(file, header)
        for frame in chain((first,), frames):
            file.write(frame.tobytes())


def _shrink(frame: Frame, side: int) -> Frame:
    height, width = frame.shape[:2]
    short = min(height, width)
    if short <= side:
        return frame
    size = (round(width * side / short), round(height * side / short))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _about(frames: Path) -> Path:
    return frames.with_suffix(".json")


def source_state(source: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of the files that a source is made of."""
    path = Path(source)
    if (episode := split_episode(path)) is not None:
        # Whichever of its files an episode lies in: to look that up takes longer than to ask for the times of all.
        found = (file for file in episode[0].rglob("*") if file.suffix in _DATASET_SUFFIXES or file.name == "info.json")
        return [(str(file.relative_to(episode[0])), *_stat(file)) for file in sorted(found)]
    if not path.exists():
        path = Path(source.rpartition(":/")[0])
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    return [(file.name, *_stat(file)) for file in files]


def _stat(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
