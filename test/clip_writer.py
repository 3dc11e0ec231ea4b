"""Writes small videos whose every frame carries its number, readable after lossy compression."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 48, 96
BITS = 8
BAR = WIDTH // BITS


def numbered(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame with `number` as eight black or white bars in its upper half; below it is grey."""
    frame = np.full((height, width, 3), 100, np.uint8)
    for bit in range(BITS):
        frame[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    """What `numbered` was given."""
    height, width = frame.shape[:2]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(frame[height // 4, x].mean() > 128) << bit for bit, x in enumerate(centres))


def write_video(
    path: Path,
    codec: str = "libx264",
    count: int = 40,
    *,
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotation: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Encodes frames 0..count-1 at 30 frames/s, or at `pts` times `time_base`."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts = number if pts is None else pts[number]
            if time_base is not None:
                frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
