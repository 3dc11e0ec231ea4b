"""Frames into a video file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av

from v2r_core.video.resize import Frame

DEFAULT_FPS = 24.0


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Writes an H.264 video; no file if there is no frame in it.

    Args:
        path: the mp4 to write.
        frames: uint8 RGB (H, W, 3), all of one size, with even sides.
        fps: frames a second; 24 where it is not a number.
    """
    rate = Fraction(fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS).limit_denominator(1000)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(first, format="rgb24")))
        for frame in iterator:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
