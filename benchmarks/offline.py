"""`v2r score` against the bare encoder."""

from __future__ import annotations

import time
from pathlib import Path

import av
import numpy as np

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import DEFAULT_BATCH, Scorer
from v2r_core.video import open_video


def write_long_video(path: Path, frames: int) -> None:
    """The shipped demonstration again and again, 640x480, H.264."""
    with open_video(CLIPS / "success.mp4") as clip, av.open(str(path), "w") as container:
        height, width, _ = clip[0].shape
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        count = 0
        while count < frames:
            for frame in clip:
                if count == frames:
                    break
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                count += 1
        container.mux(stream.encode())


def score_against_encoder(folder: Path, frames: int = 1000, rounds: int = 3) -> dict[str, float]:
    """Frames per second of scoring a video and of the encoder alone on prepared frames, in turn, medians.

    Args:
        folder: for the video.
        frames: its length.
        rounds: how often each is measured.
    """
    path = folder / "long.mp4"
    write_long_video(path, frames)
    scorer = Scorer(load_bundle(DEFAULT_BUNDLE), providers=["cpu"])
    with open_video(CLIPS / "success.mp4") as clip:
        scorer.set_goal(scorer.goal_from_video(clip, "demonstration"))
        prepared = np.stack([scorer.prepare(clip[i]) for i in range(DEFAULT_BATCH)])
    whole, bare = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(frames // DEFAULT_BATCH):
            scorer.session(prepared)
        bare.append(frames / (time.perf_counter() - start))
        with open_video(path) as video:
            start = time.perf_counter()
            scorer.score(video)
            whole.append(frames / (time.perf_counter() - start))
    return {
        "score_fps": float(np.median(whole)),
        "encoder_fps": float(np.median(bare)),
        "ratio": float(np.median(np.array(whole) / np.array(bare))),
    }
