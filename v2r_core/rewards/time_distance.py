"""The reward of TimeRewarder (arXiv 2509.26627): progress is time, as a network reads it off two frames.

form "start": the value is the distance from the episode's first frame, d(o_0, o_t); no goal is needed.
form "goal" (ours): it is minus the mean distance that is left to the goals, -mean_g |d(o_t, g)|.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.calibration import CameraRule
from v2r_core.rewards.goal import Goal, adapt_goal
from v2r_core.rewards.goal_distance import (
    NAN,
    RewardShape,
    as_cameras,
    check_choice,
    check_embedding,
    embed_in_batches,
    nearest_frames,
)
from v2r_core.rewards.reward import Embed, Network, RewardCurve, RewardKind, RewardSample


class TimeDistance:
    """Temporal distance as a value.

    Attributes:
        kind, needs_goal, history, stochastic: see `Reward`. What is compared with is state, not history.
        embed: the network that embeds frames.
    """

    kind: RewardKind = "value"
    history = 1
    stochastic = False

    def __init__(
        self,
        embed: Embed,
        networks: Mapping[str, Network],
        *,
        form: Literal["start", "goal"] = "start",
        scale: float = 1.0,
        clip: float | None = None,
        cameras: CameraRule = "mean",
        compat: Literal["value", "paper"] = "value",
    ) -> None:
        """Makes the reward.

        Args:
            embed: prepared frames to embeddings.
            networks: `pair`: called with `first` and `second`, float32 (N, D), gives the distance, (N,).
            form: see above.
            scale: factor on the reward, above 0.
            clip: the scaled reward is limited to [-clip, clip]; above 0, None for no limit.
            cameras: the distances of several cameras become their mean or their minimum.
            compat: `value`: the reward is the difference of values. `paper`: it is the distance from the frame before.

        Raises:
            ValueError: a parameter out of range, or no such network.
        """
        if "pair" not in networks:
            raise ValueError(f"networks are {sorted(networks)}, pair expected; export the bundle again")
        self.embed = embed
        self._pair = networks["pair"]
        self._shape = RewardShape(scale, clip)
        self._cameras = check_choice("cameras", cameras, ("mean", "min"))
        self._form = check_choice("form", form, ("start", "goal"))
        self._compat = check_choice("compat", compat, ("value", "paper"))
        self.needs_goal = form == "goal"
        self._goal: Goal | None = None
        self._first: NDArray[np.float32] | None = None
        self._previous: NDArray[np.float32] | None = None
        self._previous_value = NAN

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode; `goal=None` keeps the goal there is. A goal without demonstration may be several."""
        if goal is not None:
            self._goal = adapt_goal(goal, self._cameras, subgoals=not goal.has_demonstration)
            self._nearest = nearest_frames(self._goal, self._cameras)
        self._first = self._previous = None
        self._previous_value = NAN

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes scale and clip from the next frame on; see `__init__`."""
        self._shape = RewardShape(scale, clip)

    def observe(self, embedding: NDArray[np.float32]) -> RewardSample:
        """Scores one embedded frame, float32 (C, D), one row a camera.

        An embedding that is not finite gives NaN throughout and changes nothing; one unlike the goal's demonstration,
        where there is one, has a value but no reward.

        Raises:
            RuntimeError: form "goal", and no goal yet.
            ValueError: another shape than the goal's.
        """
        if self.needs_goal:
            check_embedding(self._goal, embedding)
        if not np.isfinite(embedding).all():
            return RewardSample(NAN, NAN, NAN, NAN, 0, 1, NAN)
        if self._first is None:
            self._first = embedding
        value = self._value(embedding)
        progress, uncertainty = self._calibrated(embedding, value)
        raw = NAN
        if not uncertainty > 1:
            if self._previous is not None:
                paper = self._compat == "paper"
                raw = self._distance(self._previous, embedding) if paper else value - self._previous_value
            self._previous, self._previous_value = embedding, value
        return RewardSample(self._shape(raw), raw, value, progress, 0, 1, uncertainty)

    def observe_many(self, embeddings: NDArray[np.float32]) -> list[RewardSample]:
        """Scores embedded frames, float32 (T, C, D), in their order."""
        return [self.observe(embedding) for embedding in embeddings]

    def step(self, frame: NDArray[np.uint8]) -> RewardSample:
        """Scores one prepared frame, uint8 (S, S, 3), or one per camera, uint8 (C, S, S, 3)."""
        return self.observe(self.embed(as_cameras(frame)))

    def score(self, frames: Iterable[NDArray[np.uint8]], goal: Goal | None = None) -> RewardCurve:
        """Resets and scores prepared frames; equals repeated `step`, but embeds 8 frames at a time."""
        self.reset(goal)
        return RewardCurve.from_samples(self.observe(each) for each in embed_in_batches(self.embed, frames))

    def _value(self, embedding: NDArray[np.float32]) -> float:
        assert self._first is not None
        if self._form == "start" or self._goal is None:
            return self._distance(self._first, embedding)
        goals = self._goal.milestones if not self._goal.has_demonstration else self._goal.milestones[-1:]
        # A frame that takes the goal for its past is not at the goal either: an optimiser finds such frames.
        return -float(np.mean([abs(self._distance(embedding, goal)) for goal in goals]))

    def _calibrated(self, embedding: NDArray[np.float32], value: float) -> tuple[float, float]:
        """Progress and uncertainty: from the goal's demonstration; without one, progress is the distance itself."""
        if self._form == "start":
            return float(np.clip(value, 0, 1)), NAN
        assert self._goal is not None
        if not self._goal.has_demonstration:
            return float(np.clip(1 + value, 0, 1)), NAN
        distances = self._nearest.distances(embedding)
        return self._nearest.progress(distances), self._nearest.uncertainty(distances)

    def _distance(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
        distances = self._pair(first=first, second=second)
        return float(distances.min() if self._cameras == "min" else distances.mean())
