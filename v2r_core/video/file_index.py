"""Which frames a video file has, and where decoding can start: one pass over its packets, without decoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from v2r_core.video.video import VideoError

_MISSING_TAIL_S = 0.5
"""A file that ends this much before the length it declares is truncated."""


@dataclass(frozen=True)
class FrameTable:
    """What one pass over the packets, without decoding, tells about a file or a part of it.

    Attributes:
        pts: presentation times of the frames in time base units, ascending, int64 (T,).
        keys: indices of the frames that decoding can start at, ascending; the first is 0.
        time_base: seconds a unit.
        in_order: True if packets have no usable presentation time, so that frames are told apart by counting.
        declared_fps: frame rate in the file's header; NaN if it has none.
        whole: True if it has all frames; else it begins at a key frame somewhere in the file.
    """

    pts: NDArray[np.int64]
    keys: list[int]
    time_base: float
    in_order: bool
    declared_fps: float
    whole: bool = True


def open_container(path: Path) -> InputContainer:
    """Opens a file for reading."""
    # Titles and comments are in any encoding; a strange one is no reason to refuse the pictures.
    return av.open(str(path), metadata_errors="replace")


def index_frames(path: Path, span: tuple[float, float] | None = None) -> FrameTable:
    """Finds the frames of a file.

    Args:
        path: the file.
        span: only the frames between these two times in seconds are wanted: the table has them and perhaps a few
            before and after them, and the rest of the file is not read, where the container allows that. Whether the
            file is complete is not checked then.

    Raises:
        VideoError: not a video, no video stream, no frame, or truncated.
    """
    try:
        with open_container(path) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: no video stream in it; give a file with pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(f"{path}: codec of its video stream is not known; convert it to H.264")
            packets = container.demux(stream) if span is None else _packets_of(container, stream, span)
            table = None if packets is None else _scan(path, container, stream, packets, span is None)
    except (av.FFmpegError, EOFError) as error:
        raise VideoError(f"{path}: cannot be read as a video ({error}); it is truncated or no video file") from error
    # Frames that are told apart by counting have to be counted from the first one.
    return index_frames(path) if table is None or (table.in_order and not table.whole) else table


def packets_from(
    container: InputContainer, stream: VideoStream, wanted: int, latest: int
) -> Iterator[av.Packet] | None:
    """Packets from a key frame on.

    Args:
        container: the open file.
        stream: its video stream.
        wanted: the key frame is to be the last one up to here, in time base units.
        latest: where it has to be at the latest.

    Returns:
        None where the container's own index leads somewhere else.

    Raises:
        av.FFmpegError: the container cannot seek.
    """
    container.seek(wanted, stream=stream, backward=True)
    packets = container.demux(stream)
    first = next(packets)
    # Some containers search by decoding time. Landing behind the key frame would not fail but give frames that were
    # predicted from others than theirs.
    return chain((first,), packets) if first.is_keyframe and first.pts is not None and first.pts <= latest else None


def _packets_of(
    container: InputContainer, stream: VideoStream, span: tuple[float, float]
) -> Iterator[av.Packet] | None:
    """Packets of a part of the stream; None where there is no way to its beginning but from that of the file."""
    first, last = (math.floor(moment / float(stream.time_base or 1)) for moment in span)
    # Before the first frame no container finds anything.
    first = max(first, stream.start_time or 0)
    try:
        packets = packets_from(container, stream, first, first)
    except av.FFmpegError:
        return None
    # No frame is shown before it is decoded.
    return packets and takewhile(lambda packet: packet.dts is None or packet.dts <= last + 1, packets)


def _scan(
    path: Path, container: InputContainer, stream: VideoStream, every: Iterable[av.Packet], whole: bool
) -> FrameTable:
    """Goes once over packets of the stream, all of them if `whole`."""
    shown: list[int | None] = []
    keys: list[int] = []
    packets = end = 0
    for packet in every:
        if packet.size == 0:
            continue
        packets += 1
        if packet.is_corrupt:
            frame = f"frame {len(shown)}" if whole else "a frame that is wanted"
            raise VideoError(f"{path}: ends within {frame}; the file is truncated, copy it again")
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(packet.pts)
        if not packet.is_discard and not _is_hidden(stream, packet):
            shown.append(packet.pts)
    table = _table(path, shown, sorted(keys), stream, whole)
    if not whole:
        return table
    # An MP4 lists its frames in front; a Matroska file has only its duration there, which sound may lengthen.
    missing = "mp4" in container.format.name and len(stream.index_entries) > packets
    if "matroska" in container.format.name and container.duration and len(container.streams) == 1 and len(shown) > 1:
        tail = container.duration / av.time_base - end * table.time_base
        missing = tail > _MISSING_TAIL_S + float(np.diff(table.pts).max()) * table.time_base
    if missing:
        raise VideoError(f"{path}: ends after {packets} frames, before its end; the file is truncated, copy it again")
    return table


def _table(path: Path, shown: list[int | None], keys: list[int], stream: VideoStream, whole: bool) -> FrameTable:
    fps = float(stream.average_rate or stream.guessed_rate or math.nan)
    time_base = float(stream.time_base or 1)
    stamps = [pts for pts in shown if pts is not None]
    # AVI has no place for presentation times, and what is made up for H.264 with B-frames is wrong.
    scrambled = stream.container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")
    if not shown or (len(stamps) < len(shown) and math.isnan(fps)):
        raise VideoError(f"{path}: {len(shown)} frames and no times in its video stream; record it again")
    if len(stamps) < len(shown):
        stamps, time_base = list(range(len(shown))), 1 / fps
    if scrambled or not keys or len(set(stamps)) < len(shown):
        return FrameTable(np.sort(np.array(stamps, np.int64)), [0], time_base, True, fps, whole)
    # Nothing can be decoded before the first key frame: a recording that was cut there has such frames.
    pts = np.unique(np.array([stamp for stamp in stamps if stamp >= keys[0]], np.int64))
    if len(pts) == 0:
        raise VideoError(f"{path}: no frame after a key frame in its video stream; record it again")
    starts = np.searchsorted(pts, np.array(keys, np.int64))
    first_frames = sorted({0, *(int(start) for start in starts if start < len(pts))})
    return FrameTable(pts, first_frames, time_base, False, fps, whole)


def _is_hidden(stream: VideoStream, packet: av.Packet) -> bool:
    """VP8 stores reference frames that are never shown as packets of their own; a bit of the first byte tells."""
    return stream.codec_context.name == "vp8" and not bytes(memoryview(packet)[:1])[0] & 0x10
