"""Labelled episodes like those of benchmarks/make_episodes.py, in a blink: a square walks, or stops half way."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from synthetic_video import moving_square

from v2r_core.evaluate.episodes import EpisodeIndex, Labels, write_index

FRAMES = 16
QUALITY = {"expert": 4, "half": 2, "still": 0}


def square_episode(task: str, behaviour: str, seed: int) -> list[np.ndarray]:
    """Frames, uint8 (48, 64, 3). Tasks differ in where the square ends up, seeds by a few levels of grey."""
    frames = moving_square(FRAMES)
    if task == "down":
        frames = [np.ascontiguousarray(np.roll(frame[::-1], 14, axis=0)) for frame in frames[::-1]]
    last = {"expert": FRAMES - 1, "half": FRAMES // 2, "still": 0}[behaviour]
    return [
        np.clip(frames[min(index, last)].astype(int) + 3 * seed, 0, 255).astype(np.uint8) for index in range(FRAMES)
    ]


def write_frames(path: Path, frames: list[np.ndarray]) -> Path:
    """Writes an mp4 at 20 frames/s; equal frames come back equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"qp": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_episodes(
    folder: Path,
    seeds: tuple[int, ...],
    behaviours: tuple[str, ...] = tuple(QUALITY),
    tasks: tuple[str, ...] = ("right", "down"),
) -> Path:
    """Writes a split with its episodes.json; returns its folder."""
    labels = []
    for task in tasks:
        for behaviour in behaviours:
            for seed in seeds:
                file = f"{behaviour}/{task}/{seed}.mp4"
                write_frames(folder / file, square_episode(task, behaviour, seed))
                done = behaviour == "expert"
                last = {"expert": FRAMES - 1, "half": FRAMES // 2, "still": 0}[behaviour]
                labels.append(
                    Labels(
                        file=file,
                        task=task,
                        seed=seed,
                        behaviour=behaviour,
                        quality=QUALITY[behaviour],
                        success=done,
                        success_frame=FRAMES - 2 if done else None,
                        stages=[5, 10] if done else None,
                        dense_reward=[None, *(float(min(i, last)) for i in range(1, FRAMES))],
                        fps=20,
                        frames=FRAMES,
                    )
                )
    write_index(folder, EpisodeIndex(about={"made by": "a test"}, episodes=labels))
    return folder
