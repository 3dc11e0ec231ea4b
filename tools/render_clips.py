"""Renders the clips in v2r_core/assets/clips: a drawer is opened, opened half way, left shut; a window is opened.

MetaWorld's scripted experts drive the arm. Needs the `sim` extra and a headless OpenGL, e.g. `MUJOCO_GL=egl`:

    MUJOCO_GL=egl python tools/render_clips.py
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import av
import metaworld
import mujoco
import numpy as np
from metaworld.policies import SawyerDrawerOpenV3Policy, SawyerReachV3Policy, SawyerWindowOpenV3Policy
from numpy.typing import NDArray

DRAWER, WINDOW = "drawer-open-v3", "window-open-v3"
OUTPUT = Path(__file__).parents[1] / "v2r_core" / "assets" / "clips"
WIDTH, HEIGHT, FPS, FRAMES = 640, 480, 30, 180
SPEED = 0.6
"""Part of the expert's speed that the arm moves at, so that a frame for each control step makes a calm video."""

SWEEP = ((-0.3, 0.55, 0.08), (0.3, 0.55, 0.08))
"""Where the arm reaches in `away`, in metres: low above the wood from the table's one side to the other."""

Action = NDArray[np.float32]
Observation = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        name: file name without extension.
        task: MetaWorld's name of the scene.
        seed: where drawer or window stand.
        opening: part of the way that it is opened; 0 to follow `SWEEP` instead.
        stop_at: part of the way at which the arm gets its last command; it runs on a little.
    """

    name: str
    task: str
    seed: int
    opening: float
    stop_at: float


CLIPS = (
    Clip("success", DRAWER, seed=1, opening=1.0, stop_at=0.9),
    Clip("success_2", DRAWER, seed=4, opening=1.0, stop_at=0.9),
    Clip("half", DRAWER, seed=1, opening=0.5, stop_at=0.3),
    Clip("away", DRAWER, seed=1, opening=0.0, stop_at=1.0),
    Clip("other", WINDOW, seed=1, opening=0.85, stop_at=1.0),
)


def expert(clip: Clip) -> Callable[[Observation, int], Action]:
    """A policy: observation and step to action, three velocities and the gripper's force, each in [-1, 1]."""
    openers = {DRAWER: SawyerDrawerOpenV3Policy, WINDOW: SawyerWindowOpenV3Policy}
    policy = openers[clip.task]() if clip.opening else SawyerReachV3Policy()

    def act(observation: Observation, step: int) -> Action:
        if not clip.opening:
            # The last three numbers of an observation are the goal, which in this task is the drawer's.
            observation = np.concatenate([observation[:-3], SWEEP[step >= FRAMES // 3]])
        action = np.clip(policy.get_action(observation), -1, 1).astype(np.float32)
        action[:3] *= SPEED
        return action

    return act


class Camera:
    """Looks over the table from the arm's right, without what a real camera would not see: targets and markers."""

    def __init__(self, model: mujoco.MjModel) -> None:
        # Shadows and multisampling take nine tenths of the time; they must be off before the first picture.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
        self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0
        self._view = mujoco.MjvCamera()
        self._view.lookat[:] = (0.02, 0.67, 0.12)
        self._view.azimuth, self._view.elevation, self._view.distance = 165, -33, 1.05

    def take(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """One picture, uint8 RGB (480, 640, 3)."""
        self._renderer.update_scene(data, camera=self._view, scene_option=self._options)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX"):
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Frees the OpenGL context; at the interpreter's end it would be too late."""
        self._renderer.close()


def render(clip: Clip) -> list[NDArray[np.uint8]]:
    """Runs one episode; a frame for each control step.

    Raises:
        RuntimeError: drawer or window did not end where the clip's name says.
    """
    benchmark = metaworld.MT1(clip.task, seed=clip.seed)
    env = benchmark.train_classes[clip.task]()
    env.set_task(benchmark.train_tasks[0])
    observation, _ = env.reset()
    act = expert(clip)
    camera = Camera(env.model)
    frames = []
    opened = start = 0.0
    stopped = False
    try:
        for step in range(FRAMES):
            frames.append(camera.take(env.data))
            action = act(observation, step)
            stopped = stopped or opened >= clip.stop_at
            if stopped:
                action[:3] = 0
            observation, _, _, _, info = env.step(action)
            start = start if step else info["obj_to_target"]
            opened = 1 - info["obj_to_target"] / start
    finally:
        camera.close()
    if abs(opened - clip.opening) > 0.1:
        raise RuntimeError(f"{clip.name}: {opened:.0%} open, {clip.opening:.0%} expected; choose another seed")
    return frames


def write(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    """Encodes H.264 with a key frame a second; one thread, so that the same frames give the same bytes."""
    with av.open(str(path), "w", options={"movflags": "faststart", "fflags": "bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "slow", "g": str(FPS)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main() -> int:
    """Renders all clips."""
    warnings.filterwarnings("ignore", message="Constant")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        path = OUTPUT / f"{clip.name}.mp4"
        write(path, render(clip))
        print(f"{path.name}: {FRAMES / FPS:.1f} s, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
