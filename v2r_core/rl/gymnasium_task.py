"""Any Gymnasium environment that renders: as a simulation that `PixelEnv` can look at.

gymnasium-robotics is found without further ado (FrankaKitchen, Fetch, Adroit); other packages through Gymnasium's own
"module:Name-v0".
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.simulation import Outcome
from v2r_core.video.resize import Frame

SUCCESS_KEYS = ("success", "is_success")
"""Where `info` says that the task is done: Adroit and the mazes, and Fetch."""
OPEN_TASKS = "tasks_to_complete"
"""Where FrankaKitchen's `info` lists what is still to do."""


class GymnasiumTask:
    """One environment with `render_mode="rgb_array"`.

    Success is what `info["success"]` or `info["is_success"]` says. FrankaKitchen's is that no task is left to do: all
    seven, or those of `options={"tasks_to_complete": [...]}`. Its reward is how many were completed in the step.

    The picture is the environment's own. Gymnasium's MuJoCo environments draw 480 pixels, and faster with
    `options={"width": size, "height": size}`.

    Attributes:
        env: the environment, Gymnasium's wrappers included.
        low, high, dt, limit: see `Simulation`.
        focal_length: NaN; Gymnasium does not say what it looks through.
    """

    focal_length = math.nan

    def __init__(self, name: str, horizon: int | None, options: Mapping[str, Any]) -> None:
        """Makes the environment.

        Args:
            name: Gymnasium's id, e.g. "FrankaKitchen-v1" or "my_module:Mine-v0".
            horizon: most steps of an episode, in place of the registered number; None keeps that.
            options: keyword arguments of the environment.

        Raises:
            ValueError: unknown, no picture to be had of it, or actions that are not a vector within finite bounds.
        """
        limits = {} if horizon is None else {"max_episode_steps": horizon}
        # Chosen before the environment imports MuJoCo; what it renders with is Gymnasium's business otherwise.
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")
        _register(name)
        try:
            # The checker's warnings are for the environment's author, and it costs time in every step.
            self.env = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **limits, **options)
        except gymnasium.error.UnregisteredEnv as error:
            raise ValueError(f"environment {name!r}: {error}") from error
        if "rgb_array" not in self.env.metadata.get("render_modes", []):
            self.env.close()
            raise ValueError(f"environment {name!r} has no render mode 'rgb_array', so there is nothing to see of it")
        space = self.env.action_space
        if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded()):
            self.env.close()
            raise ValueError(f"environment {name!r} has actions {space}, a Box (A,) with finite bounds expected")
        self._dtype = space.dtype
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.dt = self._seconds_of_a_step()
        self.limit: int | None = None
        self._lighten()

    def _seconds_of_a_step(self) -> float:
        inner, rate = self.env.unwrapped, self.env.metadata.get("render_fps")
        return float(getattr(inner, "dt", 1 / rate if rate else np.nan))

    def _lighten(self) -> None:
        """A MuJoCo environment's own `render` without shadow map and multisampling: 16 times as fast."""
        model = getattr(self.env.unwrapped, "model", None)
        mujoco = sys.modules.get("mujoco")
        if mujoco is not None and isinstance(model, mujoco.MjModel):
            from v2r_core.rl.rendering import lighten  # noqa: PLC0415 (needs MuJoCo)

            lighten(model)

    def reset(self, seed: int) -> None:
        """Starts an episode with that seed."""
        self.env.reset(seed=seed)

    def step(self, action: NDArray[np.float64]) -> Outcome:
        """One step with an action (A,)."""
        _, reward, terminated, truncated, info = self.env.step(action.astype(self._dtype))
        return Outcome(float(reward), _success(info), bool(terminated), bool(truncated))

    def picture(self) -> Frame:
        """What `render` gives, uint8 RGB (H, W, 3)."""
        picture: Any = self.env.render()
        return np.asarray(picture)

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()


def _success(info: Mapping[str, Any]) -> bool | None:
    for key in SUCCESS_KEYS:
        if key in info:
            return bool(info[key])
    return not info[OPEN_TASKS] if OPEN_TASKS in info else None


def _register(name: str) -> None:
    """Lets gymnasium-robotics add its environments if the name is not one of those that there are."""
    if ":" not in name and name not in gymnasium.registry and importlib.util.find_spec("gymnasium_robotics"):
        import gymnasium_robotics  # noqa: PLC0415

        gymnasium.register_envs(gymnasium_robotics)
