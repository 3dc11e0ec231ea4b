"""The contract that every reward keeps, whatever paper it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.goal import Goal

RewardKind = Literal["value", "step_reward"]

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Prepared frames, uint8 RGB (N, S, S, 3), to embeddings, float32 (N, D). A torch module or an ONNX session."""

Network = Callable[..., NDArray[Any]]
"""A network besides the encoder: arrays by input name, batch axis first, to one array."""


@dataclass(frozen=True)
class RewardSample:
    """What one frame is worth. NaN means "not available"; 0 never does.

    Attributes:
        reward: scalar for the policy, scaled and clipped; NaN on the first frame of an episode, which ends no step.
        raw_reward: the same before scale and clip.
        value: state value (kind "value"), e.g. minus the distance to the goal; NaN for step rewards.
        progress: calibrated on the demonstration, in [0, 1]; NaN where there is no demonstration.
        subgoal_index: index of the subgoal that is being pursued, from 0.
        subgoal_count: number of subgoals, the goal included.
        uncertainty: distance from the demonstration in units of its threshold: above 1 is out of distribution.
    """

    reward: float
    raw_reward: float
    value: float
    progress: float
    subgoal_index: int
    subgoal_count: int
    uncertainty: float


@dataclass(frozen=True)
class RewardCurve:
    """The samples of a whole video: one array a field of `RewardSample`, each of shape (T,)."""

    reward: NDArray[np.float64]
    raw_reward: NDArray[np.float64]
    value: NDArray[np.float64]
    progress: NDArray[np.float64]
    subgoal_index: NDArray[np.int64]
    subgoal_count: NDArray[np.int64]
    uncertainty: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.value)

    @classmethod
    def from_samples(cls, samples: Iterable[RewardSample]) -> RewardCurve:
        """Stacks samples in their order; integer fields stay integer."""
        rows = list(samples)
        columns: dict[str, Any] = {}
        for field in fields(RewardSample):
            dtype = np.int64 if field.name.startswith("subgoal") else np.float64
            columns[field.name] = np.array([getattr(row, field.name) for row in rows], dtype=dtype)
        return cls(**columns)


class Reward(Protocol):
    """A reward function over frames, numpy on top of a callable network.

    Attributes:
        kind: "value" if `value` measures closeness to the goal and the reward is its difference; "step_reward" if each
            step is scored by itself (then a rank correlation with time means nothing).
        needs_goal: True if `reset` must have been given a goal before `step`.
        history: number of frames that one step looks back on, the current one included.
        stochastic: True if two runs on the same frames may differ.
    """

    kind: RewardKind
    needs_goal: bool
    history: int
    stochastic: bool

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode. `goal=None` keeps the goal there is."""

    def step(self, frame: NDArray[np.uint8]) -> RewardSample:
        """Scores one prepared frame, uint8 (S, S, 3), or one per camera, uint8 (C, S, S, 3)."""

    def score(self, frames: Iterable[NDArray[np.uint8]], goal: Goal | None = None) -> RewardCurve:
        """Resets and scores prepared frames; equals repeated `step` to 1e-5, but embeds in batches."""
