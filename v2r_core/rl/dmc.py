"""The DeepMind Control Suite: what the authors of DrQ-v2 trained on (Yarats et al., section 4).

Tunyasuvunakool et al., "dm_control: Software and Tasks for Continuous Control". Needs the `sim` extra and headless
OpenGL, see rendering.py.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from v2r_core.rl import rendering  # first: it chooses the renderer before MuJoCo is imported
from v2r_core.rl.simulation import Outcome
from v2r_core.video.resize import Frame

CAMERA = 0
"""The first camera of each model, as the authors took; they took the third one for the quadruped."""
CAMERAS = {"quadruped": 2}
UNSEEN = "quadruped-escape"
"""Draws its terrain anew for each episode, and hands it to dm_control's own renderer only."""


class ControlSuiteTask:
    """One task of the suite. It knows no success, its reward is in [0, 1] a step, and it has no sky behind it.

    Attributes:
        env: the suite's environment.
        low, high, dt, limit: see `Simulation`; the suite ends its episodes itself, most after 1000 steps.
    """

    def __init__(self, name: str, size: int, horizon: int | None) -> None:
        """Builds the simulation.

        Args:
            name: domain and task, e.g. "cartpole-balance" or "ball_in_cup-catch".
            size: side of the pictures in pixels.
            horizon: None keeps the suite's own limit; else there is none, and the caller keeps count.

        Raises:
            ValueError: there is no such task, or it cannot be seen.
        """
        suite = _suite()
        domain, _, task = name.partition("-")
        if (domain, task) not in suite.ALL_TASKS:
            close = difflib.get_close_matches(name, ["-".join(known) for known in suite.ALL_TASKS], n=3, cutoff=0)
            raise ValueError(f"dm_control has no task {name!r}; the most similar ones are {', '.join(close)}")
        if name == UNSEEN:
            raise ValueError(f"{name} needs dm_control's own renderer, which is not used here; take another task")
        self._random = np.random.RandomState(0)
        limits = {} if horizon is None else {"time_limit": float("inf")}
        self.env = suite.load(domain, task, task_kwargs={"random": self._random, **limits})
        # Nobody looks at it, and the quadruped's calls a function that NumPy 2.4 has no more.
        self.env.task.get_observation = lambda physics: {}
        spec = self.env.action_spec()
        self.low, self.high = (np.broadcast_to(x, spec.shape).astype(np.float64) for x in (spec.minimum, spec.maximum))
        self.dt = float(self.env.control_timestep())
        self.limit: int | None = None
        self._camera = rendering.Camera(self.env.physics.model.ptr, size, CAMERAS.get(domain, CAMERA))

    def reset(self, seed: int) -> None:
        """Starts an episode; the seed, below 2**32, decides where everything begins."""
        self._random.seed(seed)
        self.env.reset()

    def step(self, action: np.ndarray) -> Outcome:
        """One control step with an action (A,)."""
        step = self.env.step(action)
        ended = step.last()
        terminated = ended and step.discount == 0
        return Outcome(float(step.reward), None, terminated=terminated, truncated=ended and not terminated)

    def picture(self) -> Frame:
        """What the camera sees now: uint8 RGB (size, size, 3)."""
        return self._camera.picture(self.env.physics.data.ptr)

    @property
    def focal_length(self) -> float:
        """Of the camera, in heights of the picture."""
        return self._camera.focal_length

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._camera.close()
        self.env.close()


def _suite() -> ModuleType:
    with _no_renderer():
        from dm_control import suite  # noqa: PLC0415

    return suite


@contextmanager
def _no_renderer() -> Iterator[None]:
    """Lets dm_control be imported without its own renderer, which would load Mesa at once and is never used here."""
    if "dm_control" in sys.modules:
        yield
        return
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
