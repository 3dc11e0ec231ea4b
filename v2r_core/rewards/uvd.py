"""UVD (Zhang et al., ICRA 2024): split a demonstration into subgoals where the approach to the next one begins.

`decompose` and `SubgoalSwitch` do what the released code does. The code of the paper's reward was not released; it is
in `staged_reward.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.goal_distance import check_choice

KERNEL_FLOOR = 1e-16
LOOKBACK = 512
TIE = 1e-12
OFFICIAL_MIN_INTERVAL = 18
PAPER_MIN_INTERVAL = 15
REFERENCE_FLOOR = 1e-14
BUDGET_SLACK = 3


@dataclass(frozen=True)
class Decomposition:
    """A demonstration of L frames, split.

    Attributes:
        indices: (M,) int64 ascending frame numbers of the milestones, the last one L - 1.
        curves: float64 smoothed distance to the goal of each level, from the last goal to the first; the curve of a
            level ends at its goal. Empty unless asked for.
        target_index: (L,) int64: frame number of the milestone that each frame works towards.
    """

    indices: NDArray[np.int64]
    curves: list[NDArray[np.float64]]
    target_index: NDArray[np.int64]


def smooth_curve(values: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Nadaraya-Watson regression with the kernel exp(-gamma (t - u)^2) on 0, 1, 2, ...

    The kernel underflows a few dozen frames away, so a band does for the dense matrix of the released code:
    the difference is below 1e-14 relative, and an hour of video needs no L x L matrix.

    Args:
        values: (L,).
        gamma: inverse squared width in frames^-2, above 0. 0.08 is a standard deviation of 2.5 frames.

    Returns:
        (L,) float64.
    """
    radius = min(_radius(gamma), len(values) - 1)
    kernel = np.exp(-gamma * np.arange(-radius, radius + 1, dtype=np.float64) ** 2)
    inside = slice(radius, radius + len(values))
    weighted = np.convolve(values.astype(np.float64), kernel)[inside]
    result: NDArray[np.float64] = weighted / np.convolve(np.ones(len(values)), kernel)[inside]
    return result


def decompose(
    embeddings: NDArray[np.float32],
    *,
    min_interval: int | None = None,
    gamma: float = 0.08,
    smooth: bool = True,
    normalize: bool = False,
    compat: Literal["official", "paper"] = "official",
    keep_curves: bool = False,
) -> Decomposition:
    """Finds the subgoals of a demonstration (UVD, algorithm 1), from its end backwards.

    With the last frame as the goal: the distance of every frame to the goal is smoothed over time; its strict local
    maxima are where a monotone approach to the goal begins. The latest one that leaves segments long enough is the
    next goal, and the frames up to it the next demonstration.

    `min_interval` and `gamma` count frames: they were chosen for about 20 to 30 frames a second.

    Args:
        embeddings: float32 (L, D), or (L, C, D): cameras are concatenated. L >= 1.
        min_interval: shortest segment in frames; None: 18 ("official"), 15 ("paper").
        gamma: see `smooth_curve`.
        smooth: False looks for maxima of the bare distance.
        normalize: divide the curves by the distance of frame 0 to the goal, which does not touch the indices.
        compat: "official", the released code: both the new segment and what is left before it must be longer than
            `min_interval`. "paper", the project page: only the new segment, and the subgoal is the frame before the
            maximum.
        keep_curves: also return the smoothed curves; costs O(L) a level, where otherwise a level only looks back as
            far as its subgoal.

    Raises:
        ValueError: shape, numbers that are not finite, or a parameter out of range.
    """
    frames = _check_decompose(embeddings, gamma)
    official = check_choice("compat", compat, ("official", "paper")) == "official"
    default = OFFICIAL_MIN_INTERVAL if official else PAPER_MIN_INTERVAL
    interval = default if min_interval is None else min_interval
    if interval < 1:
        raise ValueError(f"min_interval = {interval}: at least 1 frame expected")
    goal = len(frames) - 1
    indices, curves = [goal], []
    while goal > interval:
        lookback = goal + 1 if keep_curves else LOOKBACK
        while True:
            start = max(0, goal + 1 - lookback)
            curve = _goal_curve(frames, start, goal, gamma if smooth else None)
            peaks = start + _strict_maxima(curve)
            peaks = peaks[goal - peaks > interval]
            peaks = peaks[peaks > interval] if official else peaks - 1
            if len(peaks) or start == 0:
                break
            lookback *= 2
        if keep_curves:
            first = float(np.linalg.norm(frames[0] - frames[goal])) if normalize else 1.0
            with np.errstate(divide="ignore", invalid="ignore"):
                curves.append(curve / np.float64(first))
        if not len(peaks) or peaks[-1] < 1:
            break
        goal = int(peaks[-1])
        indices.append(goal)
    ascending = np.array(indices[::-1], np.int64)
    targets = ascending[np.searchsorted(ascending, np.arange(len(frames)))]
    return Decomposition(ascending, curves, targets)


def _radius(gamma: float) -> int:
    return int(np.ceil(np.sqrt(-np.log(KERNEL_FLOOR) / gamma)))


def _goal_curve(frames: NDArray[np.float32], start: int, goal: int, gamma: float | None) -> NDArray[np.float64]:
    """Distance of frames start..goal to the goal, smoothed as if over frames 0..goal."""
    margin = min(start, _radius(gamma)) if gamma is not None else 0
    distances = np.linalg.norm(frames[start - margin : goal + 1] - frames[goal], axis=-1).astype(np.float64)
    return distances if gamma is None else smooth_curve(distances, gamma)[margin:]


def _strict_maxima(curve: NDArray[np.float64]) -> NDArray[np.int64]:
    """Interior points above both neighbours. The last bits of a smoothed plateau (a still camera) do not count."""
    tie = TIE * float(np.abs(curve).max())
    rises = np.diff(curve)
    return np.flatnonzero((rises[:-1] > tie) & (rises[1:] < -tie)) + 1


def _check_decompose(embeddings: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    array = np.asarray(embeddings, np.float32)
    if array.ndim not in {2, 3} or 0 in array.shape:
        raise ValueError(f"embeddings have shape {array.shape}; (L, D) or (L, C, D) expected, none of them 0")
    if not np.isfinite(array).all():
        raise ValueError("embeddings have numbers that are not finite; look at the frames and at the encoder")
    if not 0 < gamma < np.inf:
        raise ValueError(f"gamma = {gamma}: a finite number above 0 expected")
    return array.reshape(len(array), -1)


@dataclass(frozen=True)
class SwitchStep:
    """What the switch made of one observation.

    Attributes:
        target: the milestone pursued when the observation came.
        raw_distance: distance to that milestone.
        reference_before: what that distance is divided by.
        normalized_distance: that over its reference; where a switch happened, to the new milestone: 1, or less where
            `reference_floor` says so.
        reference: reference distance after the observation.
        achieved: milestones achieved after the observation.
        switched: True if this observation achieved the target.
    """

    target: int
    raw_distance: float
    reference_before: float
    normalized_distance: float
    reference: float
    achieved: int
    switched: bool


class SubgoalSwitch:
    """Which milestone is being pursued: the state machine of the released inference wrapper.

    A milestone is achieved when the distance to it, over the distance when it became current (its reference), falls
    below a threshold. The delay keeps a quirk of the released code: after the observation that starts the delay, one
    still below the threshold switches at once, while the counter runs on and forces a second switch.

    Attributes:
        target: index of the current milestone.
        achieved: number of milestones achieved, 0 to `count`.
    """

    def __init__(
        self,
        count: int,
        threshold: float = 0.2,
        *,
        delay: int = 0,
        demo_indices: NDArray[np.int64] | None = None,
        spread: NDArray[np.float64] | None = None,
        reference_floor: NDArray[np.float64] | None = None,
    ) -> None:
        """Starts at the first milestone.

        Args:
            count: number of milestones M, at least 1.
            threshold: normalised distance below which a milestone is achieved, in (0, 1).
            delay: observations to wait before a switch; 0 does not.
            demo_indices: (M,) milestones of the demonstration. They bound the steps spent on a milestone to within 3
                of the demonstration's: no switch earlier, a forced one later.
            spread: (M,) ours: raw distances at which a milestone counts as achieved whatever its reference.
            reference_floor: (M,) ours: smallest reference of each milestone. Without it a robot that starts on top of
                a milestone divides by nearly nothing.
        """
        if count < 1:
            raise ValueError(f"count = {count}: one milestone at least expected")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold = {threshold}: a number between 0 and 1 expected")
        self.target = 0
        self.achieved = 0
        self._count = count
        self._threshold = threshold
        self._delay = delay
        self._budget = None if demo_indices is None else np.diff(np.asarray(demo_indices), prepend=-1)
        self._spread = np.zeros(count) if spread is None else spread
        self._floor = np.full(count, REFERENCE_FLOOR) if reference_floor is None else reference_floor
        self._reference: float | None = None
        self._steps = 0
        self._waited = -1

    def observe(self, distances: NDArray[np.float64]) -> SwitchStep:
        """Takes the raw distances, (M,), of one observation to all milestones."""
        target = self.target
        raw = float(distances[target])
        if self._reference is None:
            self._reference = max(raw, float(self._floor[target]))
        before = self._reference
        normalized = raw / before
        switched = self._allowed(normalized < self._threshold or raw < self._spread[target])
        if switched:
            self._steps = 0
            self.achieved = min(self.achieved + 1, self._count)
            self.target = min(self.achieved, self._count - 1)
            entry = float(distances[self.target])
            self._reference = max(entry, float(self._floor[self.target]))
            normalized = entry / self._reference if entry > 0 else 1.0
        step = SwitchStep(target, raw, before, normalized, self._reference, self.achieved, switched)
        self._steps += 1
        if self._waited >= 0:
            self._waited += 1
        return step

    def _allowed(self, want: bool) -> bool:
        if self._delay > 0:
            if want and self._waited == -1:
                want, self._waited = False, 0
            if self._waited >= self._delay:
                want, self._waited = True, -1
        if self._budget is not None:
            budget = int(self._budget[self.target])
            if want and budget > self._steps + BUDGET_SLACK:
                want = False
            elif not want and budget < self._steps - BUDGET_SLACK:
                want = True
        return want
