"""Each metric against a hand-computed or brute-force answer, and against scikit-learn and SciPy where they have it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from v2r_core.evaluate.metrics import (
    dense_agreement,
    episode_score,
    falls_in_rewind,
    gain,
    last_progress,
    match_boundaries,
    order_correlation,
    preferred,
    progress_error,
    reliability,
    spread_over_seeds,
    true_progress,
)
from v2r_core.evaluate.perturb import reversed_order, rewound_order
from v2r_core.evaluate.reward_stats import (
    average_precision,
    grouped_mean,
    grouped_pairs,
    grouped_precision,
    mean_estimate,
    pair_accuracy,
    pearson,
    spearman,
)
from v2r_core.evaluate.scored_models import plain_curve
from v2r_core.rewards.reward import RewardCurve

NAN = float("nan")
SMALL = st.integers(-3, 3)


def value_curve(numbers: list[float] | np.ndarray) -> RewardCurve:
    return plain_curve(np.asarray(numbers, np.float64), "value")


def step_curve(numbers: list[float] | np.ndarray) -> RewardCurve:
    return plain_curve(np.asarray(numbers, np.float64), "step_reward")


@given(st.lists(SMALL, min_size=3, max_size=12))
def test_voc_is_spearman_and_changes_sign_when_reversed(numbers):
    assume(len(set(numbers)) > 1)
    values = np.array(numbers, float)
    when = np.arange(len(values))
    found = order_correlation(value_curve(values), when)
    assert found == pytest.approx(spearmanr(values, when).statistic)
    order = reversed_order(len(values))
    assert order_correlation(value_curve(values[order]), when) == pytest.approx(-found)
    # Against the place in the original, the order of the frames is all the same to a value of single frames.
    assert order_correlation(value_curve(values[order]), order) == pytest.approx(found)


def test_voc_is_undefined_for_constant_and_for_short_clips():
    assert np.isnan(order_correlation(value_curve([2, 2, 2, 2]), np.arange(4)))
    assert np.isnan(order_correlation(value_curve([1]), np.arange(1)))
    assert np.isnan(order_correlation(value_curve([1, NAN, 2]), np.arange(3)))
    # A goal from the video itself: its last frame does not count.
    assert order_correlation(value_curve([3, 2, 1, 9]), np.arange(4), exclude_goal=True) == pytest.approx(-1)


@given(st.lists(st.tuples(SMALL, st.booleans()), min_size=2, max_size=14))
def test_pair_accuracy_is_the_auroc(rows):
    scores, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    found = pair_accuracy(scores, positive.astype(float))
    if positive.all() or not positive.any():
        assert np.isnan(found)
        return
    assert found == pytest.approx(roc_auc_score(positive, scores))
    # Any increasing map leaves it, a decreasing one mirrors it.
    assert pair_accuracy(np.exp(scores) * 5 + 1, positive.astype(float)) == pytest.approx(found)
    assert pair_accuracy(-scores, positive.astype(float)) == pytest.approx(1 - found)


@given(st.lists(st.tuples(SMALL, st.integers(0, 4)), min_size=2, max_size=10))
def test_pairs_against_brute_force_and_kendall(rows):
    scores, grades = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = [(i, j) for i, j in product(range(len(rows)), repeat=2) if grades[i] > grades[j]]
    won = [1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0 for i, j in pairs]
    found = pair_accuracy(scores, grades)
    assert np.isnan(found) if not pairs else found == pytest.approx(np.mean(won))
    if len(set(scores)) == len(scores) and len(set(grades)) == len(grades):
        assert 2 * found - 1 == pytest.approx(kendalltau(scores, grades).statistic)


@given(st.lists(st.tuples(SMALL, st.booleans(), st.integers(0, 3)), min_size=2, max_size=12))
def test_average_precision_is_scikit_learns_with_and_without_weights(rows):
    scores, positive, times = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(float)
    found = average_precision(scores, positive)
    if positive.all() or not positive.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(positive, scores))
    weighted = average_precision(scores, positive, times[None].astype(float))[0]
    drawn = np.repeat(np.arange(len(rows)), times)
    if len(set(positive[drawn])) < 2:
        assert np.isnan(weighted)
    else:
        assert weighted == pytest.approx(average_precision_score(positive[drawn], scores[drawn]))


@given(st.lists(st.tuples(SMALL, st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=10))
def test_a_weighted_resample_is_the_resample(rows):
    scores, grades, times = (np.array(column, float) for column in zip(*rows, strict=True))
    drawn = np.repeat(np.arange(len(rows)), times.astype(int))
    weighted = pair_accuracy(scores, grades, times[None])[0]
    np.testing.assert_allclose(weighted, pair_accuracy(scores[drawn], grades[drawn]), equal_nan=True)


def test_groups_are_compared_inside_and_averaged():
    # Each group is in perfect order; the scales differ so much that all together would not be.
    scores, grades = [1.0, 2.0, 101.0, 102.0], [0.0, 1.0, 0.0, 1.0]
    found = grouped_pairs(scores, grades, ["a", "a", "b", "b"])
    assert found.estimate.value == 1 and found.groups == {"a": 1.0, "b": 1.0}
    assert pair_accuracy(np.array(scores), np.array(grades)) == 0.75
    half = grouped_pairs([1.0, 2.0, 3.0, 2.5], grades, ["a", "a", "b", "b"])
    assert half.estimate.value == 0.5
    assert (half.estimate.low, half.estimate.high) == (0.0, 1.0)


def test_what_has_no_score_is_counted():
    found = grouped_pairs([NAN, 2.0, 1.0, NAN], [0, 1, 0, 1], ["a", "a", "a", "b"])
    assert (found.estimate.count, found.estimate.undefined) == (2, 2)
    assert found.estimate.value == 1 and np.isnan(found.groups["b"])
    mean = mean_estimate([1.0, NAN, 3.0])
    assert (mean.value, mean.count, mean.undefined) == (2.0, 2, 1)
    nothing = mean_estimate([NAN, NAN])
    assert np.isnan(nothing.value) and (nothing.count, nothing.undefined) == (0, 2)
    grouped = grouped_mean([1.0, NAN, 5.0, 7.0], ["a", "a", "b", "b"])
    assert grouped.groups == {"a": 1.0, "b": 6.0}
    assert (grouped.estimate.value, grouped.estimate.undefined) == (3.5, 1)


def test_the_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        estimate = mean_estimate(rng.normal(size=40), seed)
        inside += estimate.low <= 0 <= estimate.high
    assert 50 <= inside <= 60
    assert mean_estimate([1.0, 2.0, 4.0], 3) == mean_estimate([1.0, 2.0, 4.0], 3)


def test_grouped_precision_takes_the_truth():
    found = grouped_precision([3.0, 2.0, 1.0], [True, False, True], ["a"] * 3)
    assert found.estimate.value == pytest.approx(average_precision_score([1, 0, 1], [3, 2, 1]))


def test_episode_scores():
    curve = value_curve([0, 5, NAN, 2, NAN])
    assert [episode_score(curve, "value", how) for how in ("final", "mean", "max")] == [2, 7 / 3, 5]
    steps = step_curve([NAN, -4, -2])
    assert episode_score(steps, "step_reward") == -3 == episode_score(steps, "step_reward", "max")
    assert np.isnan(episode_score(step_curve([NAN, NAN]), "step_reward"))
    assert gain(curve, "value") == 2
    assert gain(steps, "step_reward") == -3


def test_a_rewind_is_seen_by_a_value_of_frames_and_not_by_the_clock():
    source = rewound_order(13)
    assert source.tolist() == [*range(10), 8, 7, 6, 5, 4, 3]
    assert falls_in_rewind(value_curve(source.astype(float)), source) == 1
    assert falls_in_rewind(value_curve(np.arange(len(source))), source) == 0
    assert falls_in_rewind(value_curve(np.ones(len(source))), source) == 0.5
    assert np.isnan(falls_in_rewind(value_curve(np.full(len(source), NAN)), source))


def test_preferred():
    assert [preferred(2, 1), preferred(1, 1), preferred(0, 1)] == [1, 0.5, 0]
    assert np.isnan(preferred(NAN, 1))


def brute_force_hits(found: list[int], true: list[int], tolerance: int) -> int:
    """The largest one-to-one matching, by trying every partner of the first."""
    if not found:
        return 0
    best = brute_force_hits(found[1:], true, tolerance)
    for place, mark in enumerate(true):
        if abs(found[0] - mark) <= tolerance:
            best = max(best, 1 + brute_force_hits(found[1:], true[:place] + true[place + 1 :], tolerance))
    return best


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=5), st.lists(st.integers(0, 30), max_size=5), st.integers(0, 6))
def test_boundaries_are_matched_one_to_one_as_well_as_possible(found, true, tolerance):
    match = match_boundaries(found, true, tolerance)
    assert match.hits == brute_force_hits(found, true, tolerance)


def test_boundary_numbers():
    match = match_boundaries([10, 12, 40], [11, 30], 5)
    assert (match.precision, match.recall, match.f1, match.count_error) == (1 / 3, 1 / 2, 0.4, 1)
    nothing = match_boundaries([], [], 5)
    assert np.isnan(nothing.f1) and np.isnan(nothing.precision) and np.isnan(nothing.recall)
    assert match_boundaries([], [3], 5).f1 == 0


def test_progress():
    truth = true_progress(6, 4)
    assert truth.tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert true_progress(2, 0).tolist() == [0, 1]
    assert progress_error(np.array([0, 0.5, NAN, 0.75, 1, 0.75]), truth) == pytest.approx(0.1)
    assert np.isnan(progress_error(np.full(6, NAN), truth))
    curve = RewardCurve(*[np.zeros(3)] * 3, np.array([0.2, 0.7, NAN]), *[np.zeros(3, np.int64)] * 2, np.zeros(3))
    assert last_progress(curve) == 0.7


def test_reliability_by_hand():
    found = reliability(np.array([0.05, 0.15, 0.15, 1.0, NAN]), np.array([0.0, 0.5, 0.1, 1.0, 1.0]))
    assert found.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.observed[1] == pytest.approx(0.3) and np.isnan(found.predicted[2])
    assert found.error == pytest.approx((0.05 + 2 * 0.15 + 0) / 4)
    assert np.isnan(reliability(np.array([NAN]), np.array([1.0])).error)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_perfect_progress_has_no_calibration_error(numbers):
    truth = np.array(numbers)
    assert reliability(truth, truth).error == pytest.approx(0, abs=1e-12)


def test_dense_agreement():
    scores = [np.array([1.0, 2, 3]), np.array([4.0, 5])]
    rank, r2 = dense_agreement(scores, [np.array([NAN, 4.0, 9]), np.array([16.0, 25])])
    assert rank == pytest.approx(1)
    assert r2 == pytest.approx(np.corrcoef([2, 3, 4, 5], [4, 9, 16, 25])[0, 1] ** 2)
    assert all(np.isnan(number) for number in dense_agreement([np.ones(4)], [np.arange(4.0)]))


@given(st.lists(st.tuples(SMALL, SMALL), min_size=3, max_size=10))
def test_correlations_are_scipys(rows):
    one, two = (np.array(column, float) for column in zip(*rows, strict=True))
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        assert np.isnan(spearman(one, two)) and np.isnan(pearson(one, two))
        return
    assert spearman(one, two) == pytest.approx(spearmanr(one, two).statistic)
    gaps = np.append(one, NAN), np.append(two, 1)
    assert pearson(*gaps) == pytest.approx(np.corrcoef(one, two)[0, 1])
    with pytest.raises(ValueError, match="equal length"):
        spearman(one, two[1:])


def test_spread_over_seeds():
    curves = [step_curve([NAN, 1, 5]), step_curve([NAN, 3, 5])]
    assert spread_over_seeds(curves, "step_reward") == pytest.approx(np.sqrt((2 + 0) / 2))
    assert spread_over_seeds([curves[0], curves[0]], "step_reward") == 0
    assert np.isnan(spread_over_seeds([step_curve([NAN]), step_curve([NAN])], "step_reward"))
