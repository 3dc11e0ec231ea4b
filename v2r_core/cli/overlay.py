"""The scored video as a video: every frame with its progress, its value and the subgoal it works towards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av

from v2r_core.overlay import draw_overlay
from v2r_core.rewards.reward import RewardCurve
from v2r_core.video.resize import Frame

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
            stage = int(curve.subgoal_index[i])
            picture = draw_overlay(
                frame,
                progress=float(curve.progress[i]),
                value=float(curve.value[i]),
                subgoal_index=stage,
                subgoal_count=int(curve.subgoal_count[i]),
                status=status[i],
                target=targets[min(stage, len(targets) - 1)] if targets else None,
            )
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
