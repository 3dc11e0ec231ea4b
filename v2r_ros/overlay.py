"""The picture on ~/overlay: the camera image with progress and status on it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2r_core.video.resize import Frame
from v2r_msgs.msg import Reward

GOOD, BAD, TRACK, TEXT = (0, 158, 115), (213, 94, 0), (40, 40, 40), (255, 255, 255)
MAX_WIDTH = 640


def draw_overlay(frame: Frame, reward: Reward, status: str) -> Frame:
    """Draws a progress bar, the value and the status under a frame.

    Args:
        frame: uint8 RGB (H, W, 3); shrunk to at most 640 pixels of width.
        reward: what the frame was worth.
        status: name of its status.

    Returns:
        uint8 RGB, the (shrunk) frame with a strip below it.
    """
    image = Image.fromarray(frame)
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)))
    width, height = image.size
    strip = max(36, height // 12)
    canvas = Image.new("RGB", (width, height + strip), (0, 0, 0))
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    bar = strip // 3
    draw.rectangle((0, height, width - 1, height + bar), fill=TRACK)
    if math.isfinite(reward.progress):
        filled = round((width - 1) * min(max(reward.progress, 0.0), 1.0))
        draw.rectangle((0, height, filled, height + bar), fill=GOOD)
    for number in range(1, reward.subgoal_count):
        x = round(width * number / reward.subgoal_count)
        draw.line((x, height, x, height + bar), fill=TEXT)
    healthy = reward.status in (Reward.STATUS_OK, Reward.STATUS_WARMING_UP)
    words = [status, f"progress {reward.progress:.2f}", f"value {reward.value:.2f}"]
    if reward.subgoal_count > 1:
        words.insert(1, f"subgoal {reward.subgoal_index + 1}/{reward.subgoal_count}")
    font = ImageFont.load_default(size=max(10, strip // 3))
    position = (6, height + bar + (strip - bar) // 2)
    draw.text(position, "   ".join(words), fill=TEXT if healthy else BAD, font=font, anchor="lm")
    return np.asarray(canvas)
