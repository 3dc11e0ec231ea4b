"""MetaWorld: one task, its placements, its scripted expert, and a camera that looks over the table.

Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning". Needs the `sim`
extra and headless OpenGL, see rendering.py.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl import rendering  # first: it chooses the renderer before MuJoCo is imported
from v2r_core.rl.simulation import Outcome
from v2r_core.video.resize import Frame

# isort: split
import metaworld
import mujoco
from metaworld.policies import ENV_POLICY_MAP

PLACEMENTS = 50
"""How many placements MetaWorld draws for one seed of its own."""

ACTIONS = 4
VERSION = "-v3"
LOOKAT = (0.0, 0.72, 0.15)
AZIMUTH, ELEVATION, DISTANCE = 165, -33, 1.2
"""Degrees and metres: the camera stands at the arm's right and sees table, gripper and object."""

Policy = Callable[[NDArray[np.float64]], NDArray[np.float32]]


def full_name(task: str) -> str:
    """MetaWorld's name of a task, e.g. "door-close-v3" for "door-close".

    Args:
        task: with or without the version.

    Raises:
        ValueError: there is no such task; the message has the most similar ones.
    """
    name = task if task.endswith(VERSION) else task + VERSION
    if name not in metaworld.ALL_V3_ENVIRONMENTS:
        close = difflib.get_close_matches(name, metaworld.ALL_V3_ENVIRONMENTS, n=3, cutoff=0)
        raise ValueError(f"MetaWorld has no task {task!r}; the most similar ones are {', '.join(close)}")
    return name


def expert(task: str) -> Policy:
    """MetaWorld's scripted policy of a task.

    Args:
        task: with or without the version, and with or without "metaworld:" before it.

    Returns:
        From the simulator's own observation, float64 (39,), that is `info["state"]`, to an action, float32 (4,) in
        [-1, 1]. It may have a memory: make a new one for each episode.

    Raises:
        ValueError: there is no such task.
    """
    make: Callable[[], Any] = ENV_POLICY_MAP[full_name(task.removeprefix("metaworld:"))]
    policy = make()

    def act(state: NDArray[np.float64]) -> NDArray[np.float32]:
        # The policies write into what they get.
        return np.clip(policy.get_action(state.copy()), -1, 1).astype(np.float32)

    return act


class MetaWorldTask:
    """One task: its simulation, and a camera that looks over the table from the arm's right.

    Attributes:
        env: MetaWorld's environment. It never ends an episode by itself.
        low, high, dt, limit: see `Simulation`; (4,), 1/80 s, 500 steps.
    """

    def __init__(self, task: str, size: int) -> None:
        """Builds the simulation.

        Args:
            task: MetaWorld's name, with or without the version, e.g. "door-close".
            size: side of the pictures in pixels.

        Raises:
            ValueError: there is no such task.
        """
        self._name = full_name(task)
        self.env = metaworld.ALL_V3_ENVIRONMENTS[self._name]()
        self.limit: int | None = self.env.max_path_length
        # Past this length MetaWorld raises; whoever steps it knows when to stop.
        self.env.max_path_length = sys.maxsize
        self.dt = float(self.env.dt)
        self.low, self.high = np.full(ACTIONS, -1.0), np.full(ACTIONS, 1.0)
        self._placements: dict[int, list[metaworld.Task]] = {}
        shown = mujoco.MjvOption()
        shown.sitegroup[:] = 0  # no marks of the goal
        view = mujoco.MjvCamera()
        view.lookat[:] = LOOKAT
        view.azimuth, view.elevation, view.distance = AZIMUTH, ELEVATION, DISTANCE
        self._camera = rendering.Camera(self.env.model, size, view, shown)

    def reset(self, seed: int) -> NDArray[np.float64]:
        """Starts an episode with the placement of objects that belongs to a seed.

        Args:
            seed: 0 or more. `divmod(seed, 50)` are the seed of MetaWorld's draw and the number within the draw.

        Returns:
            The simulator's first observation, float64 (39,).
        """
        block, index = divmod(seed, PLACEMENTS)
        if block not in self._placements:
            self._placements[block] = metaworld.MT1(self._name, seed=block).train_tasks
        self.env.set_task(self._placements[block][index])
        state: NDArray[np.float64] = self.env.reset()[0]
        return state

    def step(self, action: NDArray[np.float64]) -> Outcome:
        """One control step with an action, (4,) in [-1, 1]: three velocities and the gripper's effort."""
        state, reward, _, _, info = self.env.step(np.asarray(action, np.float32))
        return Outcome(float(reward), bool(info["success"]), state=state)

    def picture(self) -> Frame:
        """What the camera sees now: uint8 RGB (size, size, 3)."""
        return self._camera.picture(self.env.data)

    @property
    def focal_length(self) -> float:
        """Of the camera, in heights of the picture."""
        return self._camera.focal_length

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._camera.close()
        self.env.close()
