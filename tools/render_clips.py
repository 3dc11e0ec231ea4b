"""Renders the clips in v2r_core/assets/clips: a drawer is opened, opened half way, left shut; a window is opened.

MetaWorld's scripted experts drive the arm. Needs the `sim` extra and a headless OpenGL, e.g. `MUJOCO_GL=egl`:

    MUJOCO_GL=egl python tools/render_clips.py
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v2r_core.rl.rendering import Camera  # first: it chooses the renderer before MuJoCo is imported

# isort: split
import metaworld
import mujoco
import numpy as np
from metaworld.policies import SawyerDrawerOpenV3Policy, SawyerReachV3Policy, SawyerWindowOpenV3Policy
from numpy.typing import NDArray

from v2r_core.video.writing import write_video

DRAWER, WINDOW = "drawer-open-v3", "window-open-v3"
OUTPUT = Path(__file__).parents[1] / "v2r_core" / "assets" / "clips"
WIDTH, HEIGHT, FPS, FRAMES = 640, 480, 30, 180
ENCODING = {"crf": "20", "preset": "slow", "g": str(FPS)}
"""A key frame a second."""
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


def camera_of(model: mujoco.MjModel) -> Camera:
    """Looks over the table from the arm's right, without what a real camera would not see: targets and markers."""
    shown, view = mujoco.MjvOption(), mujoco.MjvCamera()
    shown.sitegroup[:] = 0
    view.lookat[:] = (0.02, 0.67, 0.12)
    view.azimuth, view.elevation, view.distance = 165, -33, 1.05
    return Camera(model, (HEIGHT, WIDTH), view, shown)


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
    camera = camera_of(env.model)
    frames = []
    opened = start = 0.0
    stopped = False
    try:
        for step in range(FRAMES):
            frames.append(camera.picture(env.data))
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


def main() -> int:
    """Renders all clips."""
    warnings.filterwarnings("ignore", message="Constant")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        path = OUTPUT / f"{clip.name}.mp4"
        write_video(path, render(clip), FPS, ENCODING)
        print(f"{path.name}: {FRAMES / FPS:.1f} s, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
