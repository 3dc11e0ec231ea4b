"""Videos with side-cars like those of tools/render_experts.py, in a blink: a square is the gripper."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from synthetic_video import moving_square

FRAMES = 12


def write_experts(folder: Path, train: int = 2, heldout: int = 1) -> Path:
    """Two tasks, `train` and `heldout` videos of each; returns the folder.

    The square walks to the right in one task and stands further down in the other; the gripper's x is its place, y
    and z follow x, the object stays.
    """
    for split, seeds in (("train", range(train)), ("heldout", range(train, train + heldout))):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for task in ("go", "return"):
            for seed in seeds:
                _write(folder / split / f"{task}_{seed}", task, seed)
    return folder


def _write(stem: Path, task: str, seed: int) -> None:
    frames = moving_square(FRAMES)
    place = np.linspace(-0.3, 0.3, FRAMES)
    if task == "return":
        frames, place = [np.roll(frame, 12, axis=0) for frame in frames[::-1]], place[::-1]
    gripper = np.stack([place, 0.5 + place / 2, 0.1 + place / 3], axis=1)
    np.savez(
        stem.with_suffix(".npz"),
        gripper=gripper,
        opening=np.ones(FRAMES),
        object=gripper * 0.5 + 0.01 * seed,
        object2=np.full((FRAMES, 3), np.nan),
        task=np.array(task),
        seed=np.array(seed),
        success=np.array(True),
    )
    with av.open(str(stem.with_suffix(".mp4")), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
