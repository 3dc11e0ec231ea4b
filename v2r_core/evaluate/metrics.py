"""What a reward curve is worth, as pure functions of curves and labels.

A curve of kind "value" says how close each frame is to the goal. One of kind "step_reward" scores each step by itself:
its rank correlation with time means nothing, so nothing here computes one for it; it is judged by its mean over the
episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.evaluate.reward_stats import NAN, pearson, spearman
from v2r_core.rewards.quality import voc
from v2r_core.rewards.reward import RewardCurve, RewardKind

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Summary = Literal["final", "mean", "max"]

BINS = 10


def frame_scores(curve: RewardCurve, kind: RewardKind) -> Floats:
    """What a reward says of each frame, (T,): the value, or for step rewards the reward before scale and clip."""
    return curve.value if kind == "value" else curve.raw_reward


def episode_score(curve: RewardCurve, kind: RewardKind, summary: Summary = "final") -> float:
    """One number for an episode, the higher the better.

    Args:
        curve: of the episode.
        kind: of the reward.
        summary: of a value the last, mean or largest one that is finite. A step reward is always averaged over its
            steps: its sum would grow with the length of the episode.

    Returns:
        NaN if no frame has a number.
    """
    scores = frame_scores(curve, kind)
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return NAN
    if kind == "step_reward" or summary == "mean":
        return float(scores.mean())
    return float(scores[-1] if summary == "final" else scores.max())


def order_correlation(curve: RewardCurve, when: Indices | Floats, exclude_goal: bool = False) -> float:
    """Value-order correlation (VOC): Spearman of value and time.

    Args:
        curve: of kind "value".
        when: (T,) what should rise with the value: the frame's place, or its place in the unchanged clip.
        exclude_goal: leave out the last frame, where the goal was taken from there.

    Returns:
        In [-1, 1]; NaN for fewer than three frames with a value, or a constant one.
    """
    return voc(curve.value, np.asarray(when, np.float64), exclude_goal=exclude_goal)


def falls_in_rewind(curve: RewardCurve, source: Indices) -> float:
    """1 if the value falls where a rewound clip runs backwards, 0 if it does not, 0.5 if it neither rises nor falls.

    Args:
        curve: of kind "value", of the rewound clip.
        source: (T,) which frame of the unchanged clip each of its frames is: up to a turning point, then down.

    Returns:
        NaN with fewer than three frames behind the turning point.
    """
    turn = int(np.argmax(source))
    values = curve.value[turn:]
    if np.isfinite(values).sum() < 3:
        return NAN
    trend = spearman(values, np.arange(len(values), dtype=np.float64))
    return 0.5 if not np.isfinite(trend) or trend == 0 else float(trend < 0)


def preferred(original: float, changed: float) -> float:
    """1 if the original has the higher score, 0.5 if both have the same, 0 otherwise; NaN if either has none."""
    if not (np.isfinite(original) and np.isfinite(changed)):
        return NAN
    return 0.5 if original == changed else float(original > changed)


@dataclass(frozen=True)
class BoundaryMatch:
    """How many of some boundaries were found.

    Attributes:
        hits: pairs of a found and a true boundary within the tolerance, each used once.
        found: boundaries that were found.
        true: boundaries that there are.
    """

    hits: int
    found: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the found ones that are true; NaN if none was found."""
        return self.hits / self.found if self.found else NAN

    @property
    def recall(self) -> float:
        """Share of the true ones that were found; NaN if there is none."""
        return self.hits / self.true if self.true else NAN

    @property
    def f1(self) -> float:
        """Harmonic mean of both: twice the hits over all boundaries; NaN if there is none at all."""
        return 2 * self.hits / (self.found + self.true) if self.found + self.true else NAN

    @property
    def count_error(self) -> int:
        """Difference in number."""
        return abs(self.found - self.true)


def match_boundaries(found: Sequence[int], true: Sequence[int], tolerance: int) -> BoundaryMatch:
    """Matches boundaries one to one; as many as possible.

    Args:
        found: frame numbers.
        true: frame numbers.
        tolerance: frames that a match may be apart.
    """
    left, right = sorted(found), sorted(true)
    hits = i = j = 0
    # With intervals of equal width, taking the earliest partner first leaves the most to the later ones.
    while i < len(left) and j < len(right):
        if abs(left[i] - right[j]) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return BoundaryMatch(hits, len(found), len(true))


def true_progress(frames: int, success_frame: int) -> Floats:
    """What progress should be in an episode that succeeds: time over time until success, then 1.

    Args:
        frames: T.
        success_frame: from which on the task is done.

    Returns:
        (T,) in [0, 1].
    """
    return np.minimum(np.arange(frames) / max(success_frame, 1), 1.0)


def progress_error(progress: Floats, truth: Floats) -> float:
    """Mean absolute difference where progress is available; NaN where it never is."""
    known = np.isfinite(progress)
    return float(np.abs(progress[known] - truth[known]).mean()) if known.any() else NAN


@dataclass(frozen=True)
class Reliability:
    """Calibration in bins of equal width of the predicted number.

    Attributes:
        predicted: (B,) mean prediction of each bin, NaN for an empty one.
        observed: (B,) mean truth.
        counts: (B,) numbers in it.
        error: expected calibration error: mean over numbers of |predicted - observed| of their bin; NaN without any.
    """

    predicted: Floats
    observed: Floats
    counts: Indices
    error: float


def reliability(predicted: Floats, truth: Floats, bins: int = BINS) -> Reliability:
    """Sorts predictions into bins and compares each bin's mean with that of the truth.

    Args:
        predicted: (N,) in [0, 1], NaN where not available.
        truth: (N,) in [0, 1].
        bins: B.
    """
    known = np.isfinite(predicted)
    places = np.minimum((predicted[known] * bins).astype(np.int64), bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(places, predicted[known], bins) / counts
        seen = np.bincount(places, truth[known], bins) / counts
    filled = counts > 0
    total = counts.sum()
    error = float((np.abs(mean - seen)[filled] * counts[filled]).sum() / total) if total else NAN
    return Reliability(mean, seen, counts, error)


def last_progress(curve: RewardCurve) -> float:
    """Progress at the end: the last one that is available."""
    known = curve.progress[np.isfinite(curve.progress)]
    return float(known[-1]) if len(known) else NAN


def dense_agreement(scores: Sequence[Floats], dense: Sequence[Floats]) -> tuple[float, float]:
    """How well per-frame scores of all episodes of a task say what the simulator's dense reward says.

    Args:
        scores: (T,) of each episode.
        dense: (T,) of each, NaN where there is none.

    Returns:
        Spearman's correlation, and R2 of the best straight line; NaN where undefined.
    """
    if not scores:
        return NAN, NAN
    one, two = np.concatenate(list(scores)), np.concatenate(list(dense))
    return spearman(one, two), pearson(one, two) ** 2


def gain(curve: RewardCurve, kind: RewardKind) -> float:
    """What a policy earns in an episode: the value's way from its first to its last number, or the mean step reward."""
    scores = frame_scores(curve, kind)
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return NAN
    return float(scores[-1] - scores[0]) if kind == "value" else float(scores.mean())


def spread_over_seeds(curves: Sequence[RewardCurve], kind: RewardKind) -> float:
    """Standard deviation of each frame's score over sampling seeds, root mean square over frames; NaN if undefined."""
    stacked = np.stack([frame_scores(curve, kind) for curve in curves])
    stacked = stacked[:, np.isfinite(stacked).all(axis=0)]
    return float(np.sqrt(stacked.var(axis=0, ddof=1).mean())) if stacked.size and len(curves) > 1 else NAN
