"""Gymnasium environments without a simulator, for tests of what is built around one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from synthetic_video import moving_square


class Film(gymnasium.Env):
    """Shows the frames of `moving_square`, one a step, whatever is done; the last one ends the episode.

    Args:
        black: number of a frame that is black instead.
        sparse: put `info["sparse"]`, 1 at every tenth frame, else the own reward is all that there is.
        seen: the frame is the observation; else that is its number, and the frame is what `render` gives.
        dt: seconds of one step.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, black: int = -1, sparse: bool = True, seen: bool = True, dt: float = 0.1) -> None:
        self.frames = moving_square()
        if black >= 0:
            self.frames[black] = np.zeros_like(self.frames[black])
        self._sparse, self._seen, self.dt = sparse, seen, dt
        self.observation_space = (
            gymnasium.spaces.Box(0, 255, self.frames[0].shape, np.uint8)
            if seen
            else gymnasium.spaces.Box(0, len(self.frames), (1,), np.float32)
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self._at = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at += 1
        info = {"sparse": float(self._at % 10 == 0)} if self._sparse else {}
        return self._observation(), -0.25 * self._at, False, self._at == len(self.frames) - 1, info

    def render(self) -> np.ndarray:
        return self.frames[self._at]

    def _observation(self) -> np.ndarray:
        return self.render() if self._seen else np.array([self._at], np.float32)


class Dial(gymnasium.Env):
    """Two dials that go where the action says; each thing that can happen to an environment happens when it is told.

    Args:
        success: steps after which the task is done; None: it never says anything of success.
        key: where it says so.
        ends: step that ends the episode for good.
        raises: step that raises; 0: `reset` raises, once.
        odd: step whose reward is NaN.
        blind: `render` gives None.
        low, high: bounds of the actions.
        side: of the picture's height; the width is a third more.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        success: tuple[int, ...] | None = (),
        key: str = "success",
        ends: int = -1,
        raises: int = -1,
        odd: int = -1,
        blind: bool = False,
        low: tuple[float, ...] = (-1.0, -1.0),
        high: tuple[float, ...] = (1.0, 1.0),
        side: int = 48,
    ) -> None:
        self.render_mode = render_mode
        self.told = {"success": success, "key": key, "ends": ends, "raises": raises, "odd": odd, "blind": blind}
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high), dtype=np.float32)
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []
        self._picture = np.zeros((side, side * 4 // 3, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        if self.told["raises"] == 0:
            self.told["raises"] = -1
            raise OSError("the motor is hot")
        self.actions = []
        self._picture[:] = self.np_random.integers(0, 256, self._picture.shape)
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        at = len(self.actions)
        if at == self.told["raises"]:
            raise OSError("the motor is hot")
        self._picture[:] = self.np_random.integers(0, 256, self._picture.shape)
        done = self.told["success"]
        info = {} if done is None else {self.told["key"]: at in done}
        reward = np.nan if at == self.told["odd"] else float(at)
        return np.zeros(2), reward, at == self.told["ends"], False, info

    def render(self) -> np.ndarray | None:
        return None if self.told["blind"] else self._picture
