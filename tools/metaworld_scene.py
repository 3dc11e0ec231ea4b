"""MetaWorld as the tools here see it: one task, its placements, and a camera that is fast enough without a GPU.

Needs the `sim` extra and headless OpenGL, MUJOCO_GL=egl or osmesa.
"""

from __future__ import annotations

from pathlib import Path

from v2r_core.rl.metaworld import MetaWorldTask  # first: it chooses the renderer before MuJoCo is imported

# isort: split
import av
import numpy as np
from numpy.typing import NDArray

KEY_FRAME_EVERY = 8


class Scene(MetaWorldTask):
    """One task as agents see it too, at the rate of a video."""

    def __init__(self, task: str, size: int, every: int) -> None:
        """Builds the simulation.

        Args:
            task: MetaWorld's name without the version, e.g. "door-close".
            size: side of the pictures in pixels.
            every: control steps from frame to frame.
        """
        super().__init__(task, size)
        self._every = every

    @property
    def fps(self) -> int:
        """Frames a second of a video at the speed of the simulation."""
        return max(1, round(1 / (self.dt * self._every)))

    def place(self, seed: int) -> NDArray[np.float64]:
        """Starts an episode with the placement of objects that belongs to a seed; gives the first observation."""
        return self.reset(seed)


def write_video(path: Path, frames: list[NDArray[np.uint8]], fps: int) -> None:
    """Encodes H.264 without frames that depend on later ones; one thread, so that equal frames give equal bytes."""
    options = {"crf": "18", "preset": "fast", "g": str(KEY_FRAME_EVERY), "bf": "0"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart", "fflags": "bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
