"""Our rank correlation against scipy's, and VIP's bumps."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from v2r_core.rewards.quality import average_ranks, bumps, voc


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=60))
def test_equals_scipy_with_ties(numbers):
    values = np.array(numbers, np.float64)
    assume(len(set(numbers)) > 1)
    times = np.arange(len(values)) / 24
    assert voc(values, times, exclude_goal=False) == pytest.approx(spearmanr(values, times).statistic, abs=1e-12)
    np.testing.assert_allclose(average_ranks(values), rankdata(values))


def test_the_goal_frame_does_not_count():
    values = np.array([3.0, 2.0, 1.0, 0.0, 100.0])
    assert voc(values, np.arange(5.0)) == pytest.approx(-1)
    assert voc(values, np.arange(5.0), exclude_goal=False) > -1


def test_frames_without_value_are_left_out():
    values = np.array([np.nan, 1.0, 2.0, np.inf, 3.0, 0.0])
    assert voc(values, np.arange(6.0)) == pytest.approx(1)


def test_undefined_is_nan():
    assert np.isnan(voc(np.ones(9), np.arange(9.0)))
    assert np.isnan(voc(np.arange(3.0), np.arange(3.0)))
    assert np.isnan(voc(np.zeros(0), np.zeros(0)))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="equal length"):
        voc(np.zeros(3), np.zeros(4))


def test_bumps():
    assert bumps(np.array([0.0, 1.0, 0.5, 0.5, 2.0])) == 0.25
    assert bumps(np.array([0.0, np.nan, 0.5, 0.4])) == 1
    assert np.isnan(bumps(np.array([1.0])))
