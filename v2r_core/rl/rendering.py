"""A camera in a MuJoCo simulation that is fast enough without a GPU.

Importing this chooses the renderer, so import it before anything that imports MuJoCo. Needs the `sim` extra and
headless OpenGL: MUJOCO_GL=egl (taken where nothing is said) or osmesa.
"""

from __future__ import annotations

import atexit
import importlib.util
import math
import os
import sys
import weakref

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
# The software renderer's own threads only get in the way of a second process.
os.environ.setdefault("LP_NUM_THREADS", "1")

import mujoco

from v2r_core.video.resize import Frame

HIDDEN_FLAGS = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX")


def lighten(model: mujoco.MjModel) -> None:
    """Turns off the shadow map and multisampling, which take nine tenths of the time of a picture.

    Only before the first picture: a renderer that was made before keeps them.
    """
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


class Camera:
    """Takes pictures without shadows, reflections, multisampling and sky.

    The OpenGL context is made with the first picture, so a process that only asks an environment for its spaces, as
    `gymnasium.vector.AsyncVectorEnv` does, never loads a renderer. It belongs to the process and the thread of that
    first picture.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        size: int | tuple[int, int],
        view: mujoco.MjvCamera | int,
        shown: mujoco.MjvOption | None = None,
    ) -> None:
        """Prepares the model.

        Args:
            model: of the simulation; its visual settings are changed.
            size: side of the pictures in pixels, or height and width.
            view: a free camera, or the number of one of the model's.
            shown: what is shown; None is MuJoCo's default.
        """
        lighten(model)
        height, width = (size, size) if isinstance(size, int) else size
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        self._model, self._size, self._view, self._shown = model, (height, width), view, shown
        self._renderer: mujoco.Renderer | None = None

    def picture(self, data: mujoco.MjData) -> Frame:
        """What the camera sees: uint8 RGB (H, W, 3)."""
        if self._renderer is None:
            _load_triton_first()
            self._renderer = mujoco.Renderer(self._model, *self._size)
            for flag in HIDDEN_FLAGS:
                self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
            # Later at the interpreter's end it would fail, as MuJoCo has let go of the display by then.
            atexit.register(_close, weakref.ref(self))
        self._renderer.update_scene(data, camera=self._view, scene_option=self._shown)
        picture: Frame = self._renderer.render()
        return picture

    @property
    def focal_length(self) -> float:
        """In heights of the picture; NaN where the camera is no pinhole that looks through its middle."""
        fovy = self._model.vis.global_.fovy
        if isinstance(self._view, int):
            if _is_no_pinhole(self._model, self._view):
                return math.nan
            fovy = self._model.cam_fovy[self._view]
        elif self._model.vis.global_.orthographic:
            return math.nan
        return float(0.5 / math.tan(math.radians(fovy) / 2))

    def close(self) -> None:
        """Frees the OpenGL context. The next picture would make a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _is_no_pinhole(model: mujoco.MjModel, camera: int) -> bool:
    """Whether a camera of the model is orthographic, or has a sensor of its own in place of a field of view."""
    kinds = model.cam_orthographic if hasattr(model, "cam_orthographic") else model.cam_projection  # from MuJoCo 3.4 on
    return bool(kinds[camera] or model.cam_sensorsize[camera].any())


def _close(camera: weakref.ref[Camera]) -> None:
    if (left := camera()) is not None:
        left.close()


def _load_triton_first() -> None:
    """Where torch is in this process too: Mesa's LLVM loaded before triton's would crash torch's first optimizer."""
    if "torch" in sys.modules and importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
