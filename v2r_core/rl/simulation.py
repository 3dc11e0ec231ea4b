"""What `PixelEnv` asks of a simulator; one file a simulator answers it: metaworld.py, dmc.py, gymnasium_task.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.resize import Frame


@dataclass(frozen=True)
class Outcome:
    """What one step of a simulator led to.

    Attributes:
        reward: the simulator's own.
        success: whether the task is done now; None where the simulator does not know what success is.
        terminated: the episode ended, and nothing would follow.
        truncated: the simulator's own limit of steps was reached.
        state: the simulator's own observation, float64 (D,), where there is one that something else here reads.
    """

    reward: float
    success: bool | None
    terminated: bool = False
    truncated: bool = False
    state: NDArray[np.float64] | None = None


class Simulation(Protocol):
    """A task in a simulator.

    Attributes:
        low, high: (A,) float64, finite: bounds of its actions.
        dt: seconds of one step; NaN where it does not say.
        limit: steps after which an episode is to be cut off; None where it does that itself.
        env: the simulator's own environment.
        focal_length: of its camera, in heights of the picture; NaN where it is not known.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    dt: float
    limit: int | None
    env: Any

    @property
    def focal_length(self) -> float:
        """See above."""

    def reset(self, seed: int) -> NDArray[np.float64] | None:
        """Starts an episode that the seed alone decides; gives `Outcome.state`."""

    def step(self, action: NDArray[np.float64]) -> Outcome:
        """One step with an action (A,) within the bounds."""

    def picture(self) -> Frame:
        """What the camera sees now: uint8 RGB (H, W, 3), of any size."""

    def close(self) -> None:
        """Frees what it holds. May be called again."""
