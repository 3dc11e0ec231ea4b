"""The scored video as a video: every frame with its progress, its value and the subgoal it works towards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2r_core.rewards.reward import RewardCurve
from v2r_core.video.resize import Frame

GREEN, VERMILION, TRACK, PAPER, INK = (0, 158, 115), (213, 94, 0), (70, 70, 70), (24, 24, 24), (240, 240, 240)
MIN_WIDTH, MAX_WIDTH = 480, 960
STRIP = 48
BAR = 12
MARGIN = 10
THUMBNAIL = 0.22
"""Width of the subgoal's picture, as a part of the frame's."""
DEFAULT_FPS = 24.0


def write_overlay(
    path: Path,
    frames: Iterable[Frame],
    curve: RewardCurve,
    status: Sequence[str],
    targets: Sequence[Frame],
    fps: float,
) -> None:
    """Writes an H.264 video.

    Args:
        path: the mp4 to write.
        frames: uint8 RGB (H, W, 3), one a sample.
        curve: the T samples.
        status: (T,) names; anything but "ok" and "warming_up" is shown in red.
        targets: pictures of the subgoals in order, for the corner; empty: no picture.
        fps: frames per second; 24 where it is not a number.
    """
    rate = Fraction(fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        stream = None
        for i, frame in enumerate(frames):
            picture = draw_frame(frame, curve, i, status[i], targets)
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def draw_frame(frame: Frame, curve: RewardCurve, index: int, status: str, targets: Sequence[Frame]) -> Frame:
    """One frame, uint8 RGB with even sides: the picture 480 to 960 pixels wide, and a strip of 48 pixels below it."""
    scale = min(max(frame.shape[1], MIN_WIDTH), MAX_WIDTH) / frame.shape[1]
    width, height = (2 * round(side * scale / 2) for side in (frame.shape[1], frame.shape[0]))
    canvas = Image.new("RGB", (width, height + STRIP), PAPER)
    canvas.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(canvas)
    stage, count = int(curve.subgoal_index[index]), int(curve.subgoal_count[index])
    if targets:
        _paste_target(canvas, draw, targets[min(stage, len(targets) - 1)], width)
    track = (MARGIN, height + MARGIN, width - MARGIN, height + MARGIN + BAR)
    draw.rectangle(track, fill=TRACK)
    progress = float(curve.progress[index])
    if math.isfinite(progress):
        draw.rectangle((*track[:2], track[0] + round((track[2] - track[0]) * progress), track[3]), fill=GREEN)
    words = [_number("progress", progress), _number("value", float(curve.value[index]))]
    if count > 1:
        words.insert(0, f"subgoal {stage + 1}/{count}")
    good = status in {"ok", "warming_up"}
    if not good:
        words.insert(0, status.replace("_", " "))
    font = ImageFont.load_default(size=14)
    where = (MARGIN, height + MARGIN + BAR + (STRIP - MARGIN - BAR) // 2)
    draw.text(where, "     ".join(words), font=font, fill=INK if good else VERMILION, anchor="lm")
    return np.asarray(canvas)


def _paste_target(canvas: Image.Image, draw: ImageDraw.ImageDraw, target: Frame, width: int) -> None:
    """The picture of the subgoal in the upper right corner, in a frame."""
    side = round(width * THUMBNAIL)
    picture = Image.fromarray(target).resize((side, round(side * target.shape[0] / target.shape[1])))
    corner = (width - side - MARGIN, MARGIN)
    canvas.paste(picture, corner)
    box = (corner[0] - 1, corner[1] - 1, corner[0] + side, corner[1] + picture.height)
    draw.rectangle(box, outline=GREEN, width=2)


def _number(name: str, value: float) -> str:
    return f"{name} {value:.2f}" if math.isfinite(value) else f"{name} -"
