"""Frames into a video file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av

from v2r_core.video.resize import Frame

DEFAULT_FPS = 24.0
TO_LOOK_AT: Mapping[str, str] = MappingProxyType({"crf": "23", "preset": "veryfast"})
"""Options of libx264 for videos that are looked at once."""


def write_video(path: Path, frames: Iterable[Frame], fps: float, encoding: Mapping[str, str] = TO_LOOK_AT) -> None:
    """Writes H.264 as mp4; no file if there is no frame. Equal frames give equal bytes, with one build of libx264.

    Args:
        path: the file to write.
        frames: uint8 RGB (H, W, 3), all of one size, with even sides.
        fps: frames a second; 24 where it is not a number.
        encoding: options of libx264.
    """
    rate = Fraction(fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS).limit_denominator(1000)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return
    muxing = {"movflags": "faststart", "fflags": "bitexact"}
    with av.open(str(path), "w", format="mp4", options=muxing) as container:
        stream = container.add_stream("libx264", rate=rate, options=dict(encoding))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        # What several threads make of the same frames depends on their number.
        stream.codec_context.thread_count = 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(first, format="rgb24")))
        for frame in iterator:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
