"""A frame with its reward, progress, value and status and the subgoal it works towards drawn on it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2r_core.video.resize import Frame

GREEN, VERMILION, TRACK, PAPER, INK = (0, 158, 115), (213, 94, 0), (70, 70, 70), (24, 24, 24), (240, 240, 240)
GOOD = {"ok", "warming_up"}
MIN_WIDTH, MAX_WIDTH = 480, 960
STRIP = 48
BAR = 12
MARGIN = 10
THUMBNAIL = 0.22
"""Width of the subgoal's picture, as a part of the frame's."""
TARGET_SIDE = 212
"""Longest side of a subgoal's picture that is ever drawn, in pixels; keep no more of it."""


def draw_overlay(
    frame: Frame,
    *,
    reward: float,
    progress: float,
    value: float,
    subgoal_index: int,
    subgoal_count: int,
    status: str,
    target: Frame | None = None,
) -> Frame:
    """Draws on one frame.

    Args:
        frame: uint8 RGB (H, W, 3).
        reward: any number, or NaN.
        progress: [0, 1], or NaN.
        value: any number, or NaN; a step reward has neither progress nor value.
        subgoal_index: from 0.
        subgoal_count: 0 or 1 is not shown.
        status: name in lower case; anything but "ok" and "warming_up" is shown in red.
        target: picture of the subgoal, for the corner.

    Returns:
        uint8 RGB with even sides: the picture 480 to 960 pixels wide, and a strip of 48 pixels below it.
    """
    scale = min(max(frame.shape[1], MIN_WIDTH), MAX_WIDTH) / frame.shape[1]
    width, height = (2 * round(side * scale / 2) for side in (frame.shape[1], frame.shape[0]))
    canvas = Image.new("RGB", (width, height + STRIP), PAPER)
    canvas.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(canvas)
    if target is not None:
        _paste_target(canvas, draw, target, width)
    track = (MARGIN, height + MARGIN, width - MARGIN, height + MARGIN + BAR)
    draw.rectangle(track, fill=TRACK)
    if math.isfinite(progress):
        draw.rectangle((*track[:2], track[0] + round((track[2] - track[0]) * progress), track[3]), fill=GREEN)
    words = [_number("reward", reward, 3), _number("progress", progress), _number("value", value)]
    if subgoal_count > 1:
        words.insert(0, f"subgoal {subgoal_index + 1}/{subgoal_count}")
    if status not in GOOD:
        words.insert(0, status.replace("_", " "))
    font = ImageFont.load_default(size=14)
    where = (MARGIN, height + MARGIN + BAR + (STRIP - MARGIN - BAR) // 2)
    draw.text(where, "     ".join(words), font=font, fill=INK if status in GOOD else VERMILION, anchor="lm")
    return np.asarray(canvas)


def small_target(picture: Frame) -> Frame:
    """A copy of a picture of a subgoal that is no larger than it will be drawn, for whoever keeps many of them."""
    height, width = picture.shape[:2]
    scale = min(TARGET_SIDE / max(height, width), 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def _paste_target(canvas: Image.Image, draw: ImageDraw.ImageDraw, target: Frame, width: int) -> None:
    """The picture of the subgoal in the upper right corner, in a frame; no taller than a frame that is as wide."""
    side = round(width * THUMBNAIL)
    scale = side / max(target.shape[:2])
    picture = Image.fromarray(target).resize(
        (max(1, round(target.shape[1] * scale)), max(1, round(target.shape[0] * scale)))
    )
    side = picture.width
    corner = (width - side - MARGIN, MARGIN)
    canvas.paste(picture, corner)
    box = (corner[0] - 1, corner[1] - 1, corner[0] + side, corner[1] + picture.height)
    draw.rectangle(box, outline=GREEN, width=2)


def _number(name: str, value: float, digits: int = 2) -> str:
    return f"{name} {value:.{digits}f}" if math.isfinite(value) else f"{name} -"
