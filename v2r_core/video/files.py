"""Video files over PyAV, and folders of images."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsIndex

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from v2r_core.video.file_index import FrameTable, index_frames, open_container, packets_from
from v2r_core.video.pixels import rgb_of
from v2r_core.video.resize import Frame
from v2r_core.video.video import IMAGE_SUFFIXES, VideoError, check_shape, mean_rate, resolve_index

CACHE_BYTES = 64 << 20
"""Most memory that a VideoFile keeps frames in."""

CACHE_FRAMES = 32

DECODER_THREADS = 4
"""Each thread holds a frame; more than a few help no video that a reward is computed on."""


class VideoFile:
    """A video file: see `video.source.Video`. Any frame is exact, whatever the codec; memory is bounded.

    Frames are numbered in presentation order. Display rotation (a phone's upright video) is applied, mirroring is not;
    an edit list that hides the first frames is respected.

    Args:
        path: the file.
        threads: of the decoder; 1 is best where several processes decode.
        kept_bytes: size of the decoded frames that are kept for the next time, in bytes; None for `CACHE_BYTES`.
        span: see `index_frames`; only the frames that it finds can be read, numbered from 0.

    Raises:
        VideoError: not a video, no video stream, no frame, or truncated.
    """

    def __init__(
        self,
        path: Path,
        threads: int = DECODER_THREADS,
        kept_bytes: int | None = None,
        span: tuple[float, float] | None = None,
    ) -> None:
        self.name = path.name
        self._path = path
        self._table = index_frames(path, span)
        self.stamps: NDArray[np.float64] = self._table.pts.astype(np.float64) * self._table.time_base
        rate = mean_rate(self.stamps)
        self.fps = self._table.declared_fps if math.isnan(rate) else rate
        self._cache: OrderedDict[int, Frame] = OrderedDict()
        self._threads = threads
        self._kept_bytes = CACHE_BYTES if kept_bytes is None else kept_bytes
        self._decoder: _Decoder | None = _Decoder(path, self._table, threads)

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, index: SupportsIndex) -> Frame:
        """See `Video`; the array is read-only, because it is kept for the next time."""
        number = resolve_index(index, len(self), self.name)
        if self._decoder is None:
            raise VideoError(f"{self.name}: closed; open it again")
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        frame = self._decoder.frame(number)
        frame.setflags(write=False)
        self._cache[number] = frame
        while len(self._cache) > max(1, min(CACHE_FRAMES, self._kept_bytes // frame.nbytes)):
            self._cache.popitem(last=False)
        return frame

    def __iter__(self) -> Iterator[Frame]:
        decoder = _Decoder(self._path, self._table, self._threads)
        try:
            for index in range(len(self)):
                yield decoder.frame(index)
        finally:
            decoder.close()

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Decoder:
    """One open file and a position in it: moves forward by decoding, and to anywhere else by key frames."""

    def __init__(self, path: Path, table: FrameTable, threads: int) -> None:
        self._path = path
        self._table = table
        self._threads = threads
        # One converter for all frames: a frame's own would set up its colour tables every time.
        self._converter = VideoReformatter()
        self._shape: tuple[int, ...] | None = None
        self._open()
        if not table.whole:
            # The file's first frame is not that of the table.
            self._next = -1

    def frame(self, index: int) -> Frame:
        """Frame `index` as RGB.

        Raises:
            VideoError: it cannot be decoded.
        """
        key = self._table.keys[bisect_right(self._table.keys, index) - 1]
        name = self._path.name
        try:
            if not key <= self._next <= index:
                self._seek(key)
            for number, frame in self._frames:
                self._next = number + 1
                if number == index:
                    return self._to_rgb(index, frame)
                if number > index:
                    break
        except av.FFmpegError as error:
            self._next = len(self._table.pts)
            raise VideoError(f"{name}: frame {index} cannot be decoded ({error}); copy the file again") from error
        raise VideoError(f"{name}: frame {index} is missing in what the decoder gives; the file is damaged")

    def close(self) -> None:
        self._frames.close()
        self._container.close()

    def _open(self) -> None:
        self._container = open_container(self._path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = self._threads
        self._frames = self._decode(self._container.demux(self._stream))
        self._next = 0

    def _seek(self, key: int) -> None:
        """Goes to key frame `key`, or to an earlier one where the container's own index is less exact than ours."""
        keys, pts = self._table.keys, self._table.pts
        # The first one of a file is where it is opened.
        for earlier in reversed(keys[1 if self._table.whole else 0 : bisect_right(keys, key)]):
            self._frames.close()
            try:
                packets = packets_from(self._container, self._stream, int(pts[earlier]), int(pts[key]))
            except av.FFmpegError:
                break
            if packets is not None:
                self._frames = self._decode(packets)
                self._next = key
                return
        self.close()
        self._open()

    def _decode(self, packets: Iterable[av.Packet]) -> Generator[tuple[int, VideoFrame], None, None]:
        """Frames from here on with their indices; frames that are not in the table are skipped."""
        pts = self._table.pts
        decoded = (frame for packet in packets for frame in self._stream.decode(packet))
        for count, frame in enumerate(decoded):
            if self._table.in_order:
                yield count, frame
            elif frame.pts is not None:
                number = int(np.searchsorted(pts, frame.pts))
                if number < len(pts) and pts[number] == frame.pts:
                    yield number, frame

    def _to_rgb(self, index: int, frame: VideoFrame) -> Frame:
        upright = round(frame.rotation / 90)
        pixels = self._converter.reformat(frame, format="rgb24").to_ndarray()
        rgb: Frame = np.ascontiguousarray(np.rot90(pixels, upright), dtype=np.uint8)
        self._shape = self._shape or rgb.shape
        check_shape(self._path.name, index, rgb, self._shape)
        return rgb


class ImageFolder:
    """A folder of images as a video: see `video.source.Video`.

    Files are taken in natural order, so `frame_2.png` comes before `frame_10.png`; hidden files and files of other
    types are left out. EXIF orientation is ignored; alpha is dropped. Nothing is kept in memory.

    Args:
        path: the folder.
        fps: frame rate in frames/s, which images do not tell; frame i has the stamp i / fps.

    Raises:
        VideoError: no image in the folder, or an fps that is not positive.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.name = path.name
        if not 0 < fps < math.inf:
            raise VideoError(f"{path}: fps is {fps}, a positive number of frames per second expected")
        self._files = sorted(
            (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."),
            key=_natural,
        )
        if not self._files:
            raise VideoError(f"{path}: no image in this folder; it should have {', '.join(IMAGE_SUFFIXES)} files")
        self.fps = float(fps)
        self.stamps: NDArray[np.float64] = np.arange(len(self._files), dtype=np.float64) / self.fps
        self._closed = False
        self._shape = self._read(0).shape

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> Frame:
        number = resolve_index(index, len(self), self.name)
        if self._closed:
            raise VideoError(f"{self.name}: closed; open it again")
        frame = self._read(number)
        check_shape(self.name, number, frame, self._shape)
        return frame

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, index: int) -> Frame:
        file = self._files[index]
        try:
            with Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
                return rgb_of(image)
        except Exception as error:
            # Damaged files make Pillow raise errors of many types; all of them mean that this file is to blame.
            raise VideoError(f"{file}: cannot be read ({error}); replace or remove it") from error


def _natural(file: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that takes digits as numbers; the plain name decides between `1.png` and `01.png`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", file.name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], file.name
