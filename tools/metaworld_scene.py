"""MetaWorld as the tools here see it: one task, its placements, and a camera that is fast enough without a GPU.

Needs the `sim` extra and headless OpenGL, MUJOCO_GL=egl or osmesa.
"""

from __future__ import annotations

from pathlib import Path

from v2r_core.rl.metaworld import MetaWorldTask  # first: it chooses the renderer before MuJoCo is imported

# isort: split
import numpy as np
from numpy.typing import NDArray

from v2r_core.video import writing

ENCODING = {"crf": "18", "preset": "fast", "g": "8", "bf": "0"}


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
    """Encodes H.264 without frames that depend on later ones."""
    writing.write_video(path, frames, fps, ENCODING)
