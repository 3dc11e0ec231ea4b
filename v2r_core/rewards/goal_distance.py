"""VIP (Ma et al., ICLR 2023, section on goal-conditioned rewards): the value is minus the distance to the goal.

    V(o; g) = -||phi(o) - phi(g)||_2            r_t = V(o_t; g) - V(o_{t-1}; g)

The encoder is whatever `embed` is: VIP's ResNet-50, any other, or raw pixels. `rewards/calibration.py` adds what the
paper does not have: progress and uncertainty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.calibration import CameraRule, NearestFrames, distance
from v2r_core.rewards.goal import Goal, adapt_goal
from v2r_core.rewards.reward import Embed, RewardCurve, RewardKind, RewardSample

SCORE_BATCH = 8
ChoiceT = TypeVar("ChoiceT", bound=str)
NAN = float("nan")


class GoalDistance:
    """The reward of VIP, on any embedding.

    Attributes:
        kind, needs_goal, history, stochastic: see `Reward`.
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
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        """Makes the reward; `reset` gives it a goal.

        Args:
            embed: prepared frames to embeddings.
            scale: factor on the reward, above 0. Distances of different encoders differ by orders of magnitude.
            clip: the scaled reward is limited to [-clip, clip]; above 0, None for no limit.
            cameras: the distances of several cameras become their mean or their minimum.
            compat: "paper": the reward is the difference of successive values, so that it sums up to the way made.
                "official": it is the value itself, as in the released trajectory optimisation code (which also
                takes cameras="min").

        Raises:
            ValueError: a parameter out of range.
        """
        self.embed = embed
        self._shape = RewardShape(scale, clip)
        self._cameras = check_choice("cameras", cameras, ("mean", "min"))
        self._compat = check_choice("compat", compat, ("paper", "official"))
        self._goal: Goal | None = None
        self._previous = NAN

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode; `goal=None` keeps the goal there is. Subgoals are left out: progress is on the whole."""
        if goal is not None:
            self._goal = adapt_goal(goal, self._cameras, subgoals=False)
            self._nearest = nearest_frames(self._goal, self._cameras)
        self._previous = NAN

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes scale and clip from the next frame on; see `__init__`."""
        self._shape = RewardShape(scale, clip)

    def observe(self, embedding: NDArray[np.float32]) -> RewardSample:
        """Scores one embedded frame.

        Bad frames end no step: the next reward is measured from the last good frame, so the sum over an episode stays
        the difference of its ends. An embedding that is not finite gives NaN throughout; one unlike the demonstration
        (uncertainty above 1), say a hand before the lens, has a value but no reward. Frames that were never seen
        count as little.

        Args:
            embedding: float32 (C, D), one row a camera.

        Raises:
            RuntimeError: no goal yet.
            ValueError: another shape than the goal's.
        """
        goal = check_embedding(self._goal, embedding)
        if not np.isfinite(embedding).all():
            return RewardSample(NAN, NAN, NAN, NAN, 0, 1, NAN)
        value = -float(distance(embedding, goal.milestones[-1], self._cameras))
        distances = self._nearest.distances(embedding)
        uncertainty = self._nearest.uncertainty(distances)
        raw = NAN
        if not uncertainty > 1:
            first = np.isnan(self._previous)
            raw = value if self._compat == "official" and not first else value - self._previous
            self._previous = value
        return RewardSample(
            reward=self._shape(raw),
            raw_reward=raw,
            value=value,
            progress=self._nearest.progress(distances),
            subgoal_index=0,
            subgoal_count=1,
            uncertainty=uncertainty,
        )

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


def nearest_frames(goal: Goal, cameras: CameraRule) -> NearestFrames:
    """The search among the frames of the goal's demonstration."""
    return NearestFrames(goal.demonstration, goal.demonstration_progress, goal.uncertainty_threshold, cameras)


class RewardShape:
    """What happens to a raw reward before a policy gets it: scale, then clip."""

    def __init__(self, scale: float, clip: float | None) -> None:
        """Checks both; see `GoalDistance`."""
        self._scale = check_positive("scale", scale)
        self._clip = None if clip is None else check_positive("clip", clip)

    def __call__(self, raw: float) -> float:
        scaled = raw * self._scale
        return scaled if self._clip is None else float(np.clip(scaled, -self._clip, self._clip))


def as_cameras(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One frame, uint8 (S, S, 3), or one per camera, uint8 (C, S, S, 3), as the latter."""
    if frame.dtype != np.uint8 or frame.ndim not in {3, 4} or frame.shape[-1] != 3:
        raise ValueError(f"frame is {frame.dtype} {frame.shape}; uint8 (S, S, 3) or (C, S, S, 3) expected")
    return frame[None] if frame.ndim == 3 else frame


def embed_in_batches(
    embed: Embed, frames: Iterable[NDArray[np.uint8]], batch: int = SCORE_BATCH
) -> Iterator[NDArray[np.float32]]:
    """Embeddings, float32 (C, D), of frames one after the other, computed `batch` frames at a time."""
    waiting: list[NDArray[np.uint8]] = []
    for frame in frames:
        waiting.append(as_cameras(frame))
        if len(waiting) == batch:
            yield from _embed_group(embed, waiting)
            waiting = []
    if waiting:
        yield from _embed_group(embed, waiting)


def _embed_group(embed: Embed, group: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    embeddings = embed(np.concatenate(group))
    return embeddings.reshape(len(group), len(group[0]), -1)


def check_embedding(goal: Goal | None, embedding: NDArray[np.float32]) -> Goal:
    """The goal, if there is one and the embedding has its shape."""
    if goal is None:
        raise RuntimeError("no goal yet: call reset(goal) before the first frame")
    if embedding.shape != goal.milestones.shape[1:]:
        raise ValueError(
            f"embedding has shape {embedding.shape}, the goal {goal.name!r} has {goal.milestones.shape[1:]} "
            "(cameras, length); make the goal with this encoder and these cameras"
        )
    return goal


def check_positive(name: str, value: float) -> float:
    """A parameter that must be a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
        raise ValueError(f"{name} = {value!r}: a finite number above 0 expected")
    return float(value)


def check_choice(name: str, value: ChoiceT, allowed: tuple[str, ...]) -> ChoiceT:
    """A parameter that must be one of some words."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: one of {', '.join(allowed)} expected")
    return value
