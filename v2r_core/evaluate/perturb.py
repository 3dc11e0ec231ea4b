"""Changed clips: what happens to a reward when order, light, camera or frame rate are not those it knows.

Changes of order are index arrays, so that a frame needs to be embedded once only. Changes of pictures take and give
uint8 RGB (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from v2r_core.video.resize import Frame

Indices = NDArray[np.int64]

REWIND_FROM, REWIND_TO = 0.75, 0.25
"""A rewound clip runs to this part of the clip, then backwards to that one."""

BRIGHTER, DARKER = 1.4, 0.6
SHIFT = 0.06
"""Part of the width and height by which the camera is moved; the edge is repeated."""
BLUR = 0.012
"""Radius of the Gaussian blur, as a part of the width."""
COVERED_SIDE = 0.25
"""Side of the grey square that covers a part of the picture, as a part of the shorter side."""
DARKNESS, SENSOR_NOISE = 4.0, 2.0
"""Mean level of a covered camera's picture and the standard deviation of its noise."""


def reversed_order(count: int) -> Indices:
    """The clip from its end to its start."""
    return np.arange(count)[::-1].copy()


def shuffled_order(count: int, seed: int) -> Indices:
    """The frames in random order."""
    return np.random.default_rng([seed, count]).permutation(count)


def rewound_order(count: int) -> Indices:
    """Forward to three quarters of the clip, then back to one quarter: a failure made from a success (ReWiND)."""
    turn = max(round((count - 1) * REWIND_FROM), 0)
    back = round((count - 1) * REWIND_TO)
    return np.concatenate([np.arange(turn + 1), np.arange(turn - 1, back - 1, -1)]).astype(np.int64)


def half_rate(count: int) -> Indices:
    """Every second frame."""
    return np.arange(0, count, 2)


def double_rate(count: int) -> Indices:
    """Each frame twice: a camera that delivers faster than the scene changes."""
    return np.repeat(np.arange(count), 2)


RATES: Mapping[str, Callable[[int], Indices]] = {"half frame rate": half_rate, "double frame rate": double_rate}


def brightness(frame: Frame, factor: float) -> Frame:
    """All levels times a factor, limited to 255."""
    return np.clip(frame.astype(np.float32) * factor, 0, 255).round().astype(np.uint8)


def camera_shift(frame: Frame) -> Frame:
    """The camera moved up and to the left; what was not seen before repeats the edge."""
    down, right = (max(1, round(SHIFT * side)) for side in frame.shape[:2])
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((down, 0), (right, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[:height, :width])


def blurred(frame: Frame) -> Frame:
    """Out of focus."""
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(BLUR * frame.shape[1])))


def occluded(frame: Frame) -> Frame:
    """A grey square over the lower left of the picture, the same in every frame."""
    side = round(COVERED_SIDE * min(frame.shape[:2]))
    height, width = frame.shape[:2]
    top, left = round(0.6 * (height - side)), round(0.2 * (width - side))
    changed = frame.copy()
    changed[top : top + side, left : left + side] = 127
    return changed


PICTURES: Mapping[str, Callable[[Frame], Frame]] = {
    "brighter": lambda frame: brightness(frame, BRIGHTER),
    "darker": lambda frame: brightness(frame, DARKER),
    "camera shift": camera_shift,
    "blur": blurred,
    "occlusion": occluded,
}


def covered_camera(count: int, height: int, width: int, seed: int) -> list[Frame]:
    """What a camera sees under a cap: almost black, with a sensor's noise."""
    rng = np.random.default_rng([seed, count])
    noise = rng.normal(DARKNESS, SENSOR_NOISE, (count, height, width, 3))
    return list(np.clip(noise, 0, 255).astype(np.uint8))
