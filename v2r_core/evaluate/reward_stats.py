"""Numbers with their uncertainty: means, ordered pairs and average precision, each with a bootstrap interval.

Two rules hold throughout. What is undefined (NaN) is never dropped silently: it is counted beside the number. And what
is compared is compared inside a group (a task), since scores of different scenes have different scales; the number is
then the mean over groups.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
COVERAGE = 0.95
NAN = float("nan")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number from a sample.

    Attributes:
        value: NaN where it is undefined.
        low: lower end of the 95 % bootstrap percentile interval; NaN where there is none.
        high: its upper end.
        count: episodes, pairs or groups that the number is from.
        undefined: those for which it is undefined.
    """

    value: float
    low: float
    high: float
    count: int
    undefined: int


UNDEFINED = Estimate(NAN, NAN, NAN, 0, 0)


@dataclass(frozen=True)
class Grouped:
    """An estimate over groups, and the number of each group (NaN where it is undefined)."""

    estimate: Estimate
    groups: dict[str, float]


def mean_estimate(numbers: Sequence[float] | Floats, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of the numbers that are finite.

    Args:
        numbers: (N,), NaN where undefined.
        seed: of the bootstrap, which draws whole numbers, i.e. episodes or tasks.
        resamples: of the bootstrap.
    """
    given = np.asarray(numbers, np.float64)
    finite = given[np.isfinite(given)]
    if not len(finite):
        return Estimate(NAN, NAN, NAN, 0, len(given))
    draws = np.random.default_rng(seed).integers(len(finite), size=(resamples, len(finite)))
    low, high = _interval(finite[draws].mean(axis=1))
    return Estimate(float(finite.mean()), low, high, len(finite), len(given) - len(finite))


def pair_accuracy(scores: Floats, grades: Floats, weights: Floats | None = None) -> float | Floats:
    """Share of pairs of different grade whose better one has the higher score; ties in the score count half.

    With two grades this is the AUROC. Kendall's tau-a over the same pairs, ties as half, is twice this minus one.

    Args:
        scores: (N,) finite.
        grades: (N,) finite; the higher, the better.
        weights: (B, N) how often each of them occurs in each resample; None for once each.

    Returns:
        In [0, 1], NaN without such a pair: a number, or (B,) with weights.
    """
    better = (grades[:, None] > grades[None, :]).astype(np.float64)
    won = better * ((scores[:, None] > scores[None, :]) + 0.5 * (scores[:, None] == scores[None, :]))
    if weights is None:
        pairs = better.sum()
        return float(won.sum() / pairs) if pairs else NAN
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = _quadratic(weights, won) / _quadratic(weights, better)
    return result


def average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> float | Floats:
    """Area under precision and recall as steps: sum over thresholds of (gain in recall) times precision.

    Args:
        scores: (N,) finite; equal scores are one threshold.
        positive: (N,) the class that high scores should find.
        weights: see `pair_accuracy`.

    Returns:
        In [0, 1], NaN without a positive or without a negative one; shape as `pair_accuracy`.
    """
    order = np.argsort(-scores, kind="stable")
    times = np.ones((1, len(scores))) if weights is None else weights[:, order]
    thresholds = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(scores) else np.zeros(0, np.int64)
    hits = np.cumsum(times * positive[order], axis=1)[:, thresholds]
    found = np.cumsum(times, axis=1)[:, thresholds]
    total, everything = hits[:, -1:], found[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(found > 0, hits / found, 0)
        gain = np.diff(hits, axis=1, prepend=0) / total
        areas = np.where((total > 0) & (total < everything), (gain * precision).sum(axis=1, keepdims=True), NAN)[:, 0]
    return float(areas[0]) if weights is None else areas


def grouped_pairs(
    scores: Sequence[float], grades: Sequence[float], groups: Sequence[Hashable], seed: int = 0
) -> Grouped:
    """`pair_accuracy` inside each group, and its mean; the bootstrap draws groups, and episodes inside each of them.

    Args:
        scores: (N,), NaN where an episode has no score: it is left out and counted.
        grades: (N,).
        groups: (N,), e.g. tasks.
        seed: of the bootstrap.
    """
    return _grouped(pair_accuracy, scores, grades, groups, seed)


def grouped_precision(
    scores: Sequence[float], positive: Sequence[bool], groups: Sequence[Hashable], seed: int = 0
) -> Grouped:
    """`average_precision` inside each group, and its mean; see `grouped_pairs`."""

    def statistic(chosen: Floats, grades: Floats, weights: Floats | None = None) -> float | Floats:
        return average_precision(chosen, grades > 0, weights)

    return _grouped(statistic, scores, [float(each) for each in positive], groups, seed)


def grouped_mean(numbers: Sequence[float], groups: Sequence[Hashable], seed: int = 0) -> Grouped:
    """Mean of each group, and the mean of these; see `grouped_pairs`."""

    def statistic(chosen: Floats, grades: Floats, weights: Floats | None = None) -> float | Floats:
        if weights is None:
            return float(chosen.mean())
        result: Floats = weights @ chosen / len(chosen)
        return result

    return _grouped(statistic, numbers, numbers, groups, seed)


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation over the places where both are finite; NaN for fewer than three or for constants."""
    from scipy.stats import spearmanr  # noqa: PLC0415 (half a second)

    one, two = _both(first, second)
    return float(spearmanr(one, two).statistic) if _varies(one) and _varies(two) else NAN


def pearson(first: Floats, second: Floats) -> float:
    """Linear correlation over the places where both are finite; NaN for fewer than three or for constants."""
    one, two = _both(first, second)
    return float(np.corrcoef(one, two)[0, 1]) if _varies(one) and _varies(two) else NAN


def _grouped(
    statistic: Callable[..., float | Floats],
    scores: Sequence[float],
    grades: Sequence[float],
    groups: Sequence[Hashable],
    seed: int,
) -> Grouped:
    score, grade = np.asarray(scores, np.float64), np.asarray(grades, np.float64)
    rng = np.random.default_rng(seed)
    each: dict[str, float] = {}
    resampled: list[Floats] = []
    count = 0
    for name in _names(groups):
        chosen = _members(groups, name) & np.isfinite(score)
        each[str(name)] = float(statistic(score[chosen], grade[chosen])) if chosen.any() else NAN
        if np.isfinite(each[str(name)]):
            number = int(chosen.sum())
            count += number
            weights = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float64)
            resampled.append(np.asarray(statistic(score[chosen], grade[chosen], weights)))
    low = high = NAN
    if resampled:
        # Tasks are a sample too: with few episodes in each, drawing inside them only would look far too sure.
        drawn = np.stack(resampled)
        places = rng.integers(len(drawn), size=(len(drawn), RESAMPLES))
        chosen_groups = drawn[places, np.arange(RESAMPLES)]
        known = np.isfinite(chosen_groups)
        with np.errstate(invalid="ignore"):
            means = np.where(known, chosen_groups, 0).sum(axis=0) / known.sum(axis=0)
        low, high = _interval(means[np.isfinite(means)])
    return Grouped(Estimate(_nanmean(np.array(list(each.values()))), low, high, count, len(score) - count), each)


def _interval(resampled: Floats) -> tuple[float, float]:
    if not len(resampled):
        return NAN, NAN
    low, high = np.quantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _quadratic(weights: Floats, matrix: Floats) -> Floats:
    result: Floats = np.einsum("bi,bi->b", weights @ matrix, weights)
    return result


def _names(groups: Sequence[Hashable]) -> list[Hashable]:
    return list(dict.fromkeys(groups))


def _members(groups: Sequence[Hashable], name: Hashable) -> NDArray[np.bool_]:
    return np.array([each == name for each in groups], bool)


def _nanmean(numbers: Floats) -> float:
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if len(finite) else NAN


def _both(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"{one.shape} and {two.shape}: one axis of equal length expected")
    usable = np.isfinite(one) & np.isfinite(two)
    return one[usable], two[usable]


def _varies(numbers: Floats) -> bool:
    return len(numbers) >= 3 and bool(np.ptp(numbers) > 0)
