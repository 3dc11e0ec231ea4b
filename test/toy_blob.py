"""A robot of two axes that moves a red blob, to be brought to a green mark; for Gymnasium as `toy_blob:Blob-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from tiny_policy import MARK, blob

SPEED = 0.08
NEAR = 0.12
START = (-0.6, 0.5)
LIMIT = 200


class Blob(gymnasium.Env):
    """The action is the blob's velocity.

    Args:
        raises: step of the first episode that raises; -1: none.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, raises: int = -1) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self._raises, self._steps = raises, 0
        self.position = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = np.asarray(START) + self.np_random.uniform(-0.08, 0.08, 2)
        self._steps = 0
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == self._raises:
            self._raises = -1
            raise RuntimeError("the motor is hot")
        self.position = np.clip(self.position + SPEED * np.asarray(action), -1, 1)
        distance = float(np.linalg.norm(self.position - MARK))
        return self.position.astype(np.float32), -distance, False, False, {"success": distance < NEAR}

    def render(self) -> np.ndarray:
        return blob(*self.position)


gymnasium.register("Blob-v0", Blob, max_episode_steps=LIMIT)
gymnasium.register("HotBlob-v0", Blob, max_episode_steps=LIMIT, kwargs={"raises": 4})
