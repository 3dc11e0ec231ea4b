"""The reward of UVD (Zhang et al., ICRA 2024): the distance to the next subgoal, one stage after the other.

From the paper's formula, since the code was not released (only constants of it remain). The distance to the current
milestone m_i is divided by that of the frame o_s with which m_i became current,
d(o; m_i) = |phi(o) - phi(m_i)| / |phi(o_s) - phi(m_i)|; r_t = d(o_{t-1}; m_i) - d(o_t; m_i); m_i is achieved when d
falls below a threshold, and the last one earns a bonus.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.calibration import CameraRule, distance, resolution
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
from v2r_core.rewards.reward import Embed, RewardCurve, RewardKind, RewardSample
from v2r_core.rewards.uvd import SubgoalSwitch

MAX_COMPLETION = 0.75


class StagedReward:
    """Distance to the current subgoal, made into one value over all stages.

    Ours:
    * The value. With M milestones, i of them achieved and q in (-inf, 1] the part of the current stage that is done,
      V = i - M + q: -M at the start, 0 on top of the goal, and a stage never counts less than the one before it.
    * q. "paper": q = 1 - d, so a stage ends at q just above 1 - threshold, V jumps up by the rest at the switch, and
      the reward, which is the paper's, leaves the jump out. "continuous": q = min(1, (1 - d) / (1 - c)) with c the
      normalised distance at which the switch comes (0.75 at most), so that V has no jump and the reward is always the
      difference of values. The last stage is q = 1 - d in both, down to the goal itself.
    * Where there is a demonstration, a milestone also counts as achieved within the spread that the demonstration's
      own frames have around it (`calibration.arrival_spread`): embeddings of another execution often never come within
      a fifth of the first distance. The spread is also the smallest divisor of d.
    * After the last milestone is achieved the divisor stays; leaving the goal again costs what coming back earns.

    Attributes:
        kind, needs_goal, history, stochastic: see `Reward`. The history is one frame; what was achieved is state.
        embed: the network.
    """

    kind: RewardKind = "value"
    needs_goal = True
    history = 1
    stochastic = False

    def __init__(
        self,
        embed: Embed,
        *,
        scale: float = 1.0,
        clip: float | None = None,
        cameras: CameraRule = "mean",
        threshold: float = 0.2,
        bonus: float = 0.0,
        shaping: Literal["continuous", "paper"] = "continuous",
    ) -> None:
        """Makes the reward; `reset` gives it a goal.

        Args:
            embed: prepared frames to embeddings.
            scale: factor on the reward, above 0.
            clip: the scaled reward is limited to [-clip, clip]; above 0, None for no limit.
            cameras: the distances of several cameras become their mean or their minimum.
            threshold: normalised distance below which a milestone is achieved, in (0, 1).
            bonus: added once, after scale and clip, when the last milestone is achieved; 0 or more.
            shaping: see above.

        Raises:
            ValueError: a parameter out of range.
        """
        self.embed = embed
        self._shape = RewardShape(scale, clip)
        self._cameras = check_choice("cameras", cameras, ("mean", "min"))
        self._shaping = check_choice("shaping", shaping, ("continuous", "paper"))
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
            raise ValueError(f"threshold = {threshold!r}: a number between 0 and 1 expected")
        if isinstance(bonus, bool) or not isinstance(bonus, (int, float)) or not 0 <= bonus < np.inf:
            raise ValueError(f"bonus = {bonus!r}: a finite number, 0 or more, expected")
        self._threshold = threshold
        self._bonus = float(bonus)
        self._goal: Goal | None = None

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode at the first milestone; `goal=None` keeps the goal there is."""
        if goal is not None:
            self._goal = adapt_goal(goal, self._cameras, subgoals=True)
            self._nearest = nearest_frames(self._goal, self._cameras)
            self._parts = stage_parts(self._goal)
            self._spread = self._goal.spreads.astype(np.float64)
            finest = np.array([resolution(milestone) for milestone in self._goal.milestones])
            self._floor = np.maximum(self._spread, finest)
        if self._goal is not None:
            self._switch = SubgoalSwitch(
                len(self._goal.milestones), self._threshold, spread=self._spread, reference_floor=self._floor
            )
        self._previous_value = NAN
        self._previous_distance = NAN
        self._reference = NAN

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes scale and clip from the next frame on; see `__init__`."""
        self._shape = RewardShape(scale, clip)

    def observe(self, embedding: NDArray[np.float32]) -> RewardSample:
        """Scores one embedded frame.

        Bad frames change no state, achieve no milestone and end no step: the next reward is measured from the last
        good frame. An embedding that is not finite gives NaN throughout; one unlike the demonstration (uncertainty
        above 1) has a value but no reward.

        Args:
            embedding: float32 (C, D), one row a camera.

        Raises:
            RuntimeError: no goal yet.
            ValueError: another shape than the goal's.
        """
        goal = check_embedding(self._goal, embedding)
        count = len(goal.milestones)
        if not np.isfinite(embedding).all():
            return RewardSample(NAN, NAN, NAN, NAN, self._switch.target, count, NAN)
        distances = distance(goal.milestones, embedding, self._cameras)
        near = self._nearest.distances(embedding)
        uncertainty = self._nearest.uncertainty(near)
        if uncertainty > 1:
            value, raw, bonus = self._value(distances), NAN, 0.0
        else:
            value, raw, bonus = self._advance(distances)
        stage = self._switch.target
        return RewardSample(
            reward=self._shape(raw) + bonus,
            raw_reward=raw + bonus,
            value=value,
            progress=self._nearest.progress(near, self._parts[stage]),
            subgoal_index=stage,
            subgoal_count=count,
            uncertainty=uncertainty,
        )

    def _advance(self, distances: NDArray[np.float64]) -> tuple[float, float, float]:
        """Takes the distances, (M,), of a good frame; gives value, raw reward and bonus."""
        count, bonus = len(distances), 0.0
        if self._switch.achieved == count:
            before = now = float(distances[-1]) / self._reference
        else:
            step = self._switch.observe(distances)
            before, now, self._reference = (
                step.raw_distance / step.reference_before,
                step.normalized_distance,
                step.reference,
            )
            if step.achieved == count:
                now, bonus, self._reference = before, self._bonus, step.reference_before
        value = self._value(distances, now)
        raw = self._previous_distance - before if self._shaping == "paper" else value - self._previous_value
        self._previous_value, self._previous_distance = value, now
        return value, raw, bonus

    def _value(self, distances: NDArray[np.float64], normalized: float | None = None) -> float:
        """Value in the current stage; of the frame itself where no normalised distance is given."""
        count, stage = len(distances), self._switch.target
        if normalized is None:
            # Before the first good frame there is no reference yet: the frame is its own.
            normalized = float(distances[stage]) / self._reference if self._reference > 0 else 1.0
        if self._shaping == "paper" or stage == count - 1:
            return stage - count + 1.0 - normalized
        completion = min(max(self._threshold, float(self._spread[stage]) / self._reference), MAX_COMPLETION)
        return stage - count + min(1.0, (1.0 - normalized) / (1.0 - completion))

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


def stage_parts(goal: Goal) -> list[slice]:
    """For each milestone the frames of the stored demonstration that lead to it, the one before included.

    While a subgoal is pursued only these are searched, so that a scene that comes back later is not taken for later.
    """
    ends = goal.milestone_frames if goal.has_demonstration else np.zeros(len(goal.milestones), np.int64)
    frames = goal.demonstration_frames
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        low, high = np.searchsorted(frames, start, "left"), np.searchsorted(frames, end, "right")
        # Thinning may have left no frame between two milestones; then the next one speaks for them.
        low = min(low, max(len(frames) - 1, 0))
        parts.append(slice(int(low), int(max(high, low + 1))))
    return parts
