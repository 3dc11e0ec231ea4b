"""MetaWorld as the tools here see it: one task, its placements, and a camera that is fast enough without a GPU.

Needs the `sim` extra and headless OpenGL, MUJOCO_GL=egl or osmesa.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
# The software renderer's own threads only get in the way of the second process.
os.environ.setdefault("LP_NUM_THREADS", "1")

import av
import metaworld
import mujoco
import numpy as np
from numpy.typing import NDArray

PLACEMENTS = 50
"""How many placements MetaWorld draws for one seed of its own."""

KEY_FRAME_EVERY = 8
HIDDEN_FLAGS = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX")


class Scene:
    """One task: its simulation, and a camera that looks over the table from the arm's right.

    Attributes:
        env: MetaWorld's environment.
    """

    def __init__(self, task: str, size: int, every: int) -> None:
        """Builds the simulation.

        Args:
            task: MetaWorld's name without the version, e.g. "door-close".
            size: side of the pictures in pixels.
            every: control steps from frame to frame.
        """
        self._name = f"{task}-v3"
        self._every = every
        self.env = metaworld.MT1(self._name, seed=0).train_classes[self._name]()
        self._placements: dict[int, list[metaworld.Task]] = {}
        model = self.env.model
        # Shadows and multisampling take nine tenths of the time; they must be off before the first picture.
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._renderer = mujoco.Renderer(model, size, size)
        self._shown = mujoco.MjvOption()
        self._shown.sitegroup[:] = 0
        self._view = mujoco.MjvCamera()
        self._view.lookat[:] = (0.0, 0.72, 0.15)
        self._view.azimuth, self._view.elevation, self._view.distance = 165, -33, 1.2

    @property
    def fps(self) -> int:
        """Frames a second of a video at the speed of the simulation."""
        return max(1, round(1 / (self.env.dt * self._every)))

    def place(self, seed: int) -> NDArray[np.float64]:
        """Starts an episode with the placement of objects that belongs to a seed; gives the first observation."""
        block, index = divmod(seed, PLACEMENTS)
        if block not in self._placements:
            self._placements[block] = metaworld.MT1(self._name, seed=block).train_tasks
        self.env.set_task(self._placements[block][index])
        observation: NDArray[np.float64] = self.env.reset()[0]
        return observation

    def picture(self) -> NDArray[np.uint8]:
        """What the camera sees now: uint8 RGB (size, size, 3)."""
        self._renderer.update_scene(self.env.data, camera=self._view, scene_option=self._shown)
        for flag in HIDDEN_FLAGS:
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Frees the OpenGL context; at the interpreter's end it would be too late."""
        self._renderer.close()


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
