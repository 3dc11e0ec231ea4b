"""UVD beyond parity: long videos, still cameras, the variant of the project page, and the staged reward."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.signal import argrelextrema
from synthetic import execution, way_points

from v2r_core.rewards.goal import goal_from_demonstration, goal_from_images
from v2r_core.rewards.reward import RewardCurve
from v2r_core.rewards.staged_reward import StagedReward
from v2r_core.rewards.uvd import SubgoalSwitch, decompose, smooth_curve


def unused(frames):
    raise AssertionError("embed must not be called")


def dense_smoother(values, gamma):
    at = np.arange(len(values), dtype=np.float64)
    kernel = np.exp(-gamma * (at[:, None] - at[None]) ** 2)
    return kernel @ values / kernel.sum(axis=1)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float64, st.integers(1, 300), elements=st.floats(0, 100)),
    st.floats(0.001, 2.0),
)
def test_the_band_equals_the_dense_kernel(values, gamma):
    np.testing.assert_allclose(smooth_curve(values, gamma), dense_smoother(values, gamma), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gamma", [0.005, 0.08, 0.5])
def test_random_walks_split_as_by_the_dense_algorithm(seed, gamma):
    walk = np.random.default_rng(seed).standard_normal((700, 3)).cumsum(axis=0).astype(np.float32)
    goal, expected = len(walk) - 1, [len(walk) - 1]
    while goal > 18:
        curve = dense_smoother(np.linalg.norm(walk[: goal + 1] - walk[goal], axis=1), gamma)
        peaks = [x for x in argrelextrema(curve, np.greater)[0] if goal - x > 18 and x > 18]
        if not peaks:
            break
        goal = peaks[-1]
        expected.append(goal)
    assert decompose(walk, gamma=gamma).indices.tolist() == expected[::-1]


def test_corners_are_found():
    found = decompose(execution(way_points(), 161, noise=0.05)).indices
    np.testing.assert_allclose(found, [40, 80, 120, 160], atol=3)


def test_cameras_are_concatenated():
    frames = execution(way_points(), 161)
    np.testing.assert_array_equal(decompose(frames.reshape(161, 2, 128)).indices, decompose(frames).indices)


def test_a_camera_that_stands_still_is_no_subgoal():
    frames = execution(way_points(), 160)
    still = np.concatenate([np.repeat(frames[:1], 200, axis=0), frames, np.repeat(frames[-1:], 200, axis=0)])
    found = decompose(still).indices
    assert len(found) <= len(decompose(frames).indices) + 2
    assert decompose(np.ones((500, 8), np.float32)).indices.tolist() == [499]


def test_the_project_page_differs():
    walk = np.random.default_rng(3).standard_normal((300, 3)).cumsum(axis=0).astype(np.float32)
    page, code = decompose(walk, compat="paper"), decompose(walk, min_interval=15)
    assert page.indices[-1] == code.indices[-1] == 299
    assert page.indices[-2] == code.indices[-2] - 1
    assert (np.diff(page.indices) > 15).all()


def test_an_hour_of_video_splits_in_seconds():
    walk = np.random.default_rng(0).standard_normal((36_000, 16)).cumsum(axis=0).astype(np.float32)
    start = time.perf_counter()
    found = decompose(walk)
    assert time.perf_counter() - start < 20
    assert (np.diff(found.indices) > 18).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gamma": 0}, "gamma = 0"), ({"min_interval": 0}, "min_interval = 0"), ({"compat": "mine"}, "compat = 'mine'")],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        decompose(np.zeros((30, 4), np.float32), **options)


def test_embeddings_that_cannot_be():
    with pytest.raises(ValueError, match="shape"):
        decompose(np.zeros(30, np.float32))
    with pytest.raises(ValueError, match="finite"):
        decompose(np.full((30, 2), np.nan, np.float32))


def test_switch_parameters():
    with pytest.raises(ValueError, match="count = 0"):
        SubgoalSwitch(0)
    with pytest.raises(ValueError, match=r"threshold = 1\.5"):
        SubgoalSwitch(2, 1.5)


def staged_task(noise=0.1, offset=0.0, **options):
    points = way_points()
    demonstration = execution(points, 160, noise)
    goal = goal_from_demonstration(demonstration, "g", decompose(demonstration).indices)
    reward = StagedReward(unused, **options)
    reward.reset(goal)
    return reward, goal, execution(points, 200, noise, offset, seed=2)


def observe_all(reward, embeddings):
    return RewardCurve.from_samples(reward.observe(each[None]) for each in embeddings)


@pytest.mark.parametrize("shaping", ["continuous", "paper"])
@pytest.mark.parametrize(("noise", "offset"), [(0.0, 0.0), (0.1, 0.1), (0.3, 0.3), (0.6, 0.0), (0.6, 0.3)])
def test_another_execution_goes_through_all_stages(noise, offset, shaping):
    reward, goal, frames = staged_task(noise, offset, shaping=shaping)
    curve = observe_all(reward, frames)
    count = len(goal.milestones)
    assert curve.subgoal_index[-1] == count - 1
    assert (np.diff(curve.subgoal_index) >= 0).all()
    assert np.abs(curve.progress - np.linspace(0, 1, len(frames))).mean() < 0.1
    assert curve.value[0] == pytest.approx(-count)
    assert curve.value[-1] > -1
    entered = [curve.value[np.argmax(curve.subgoal_index == stage)] for stage in range(count)]
    np.testing.assert_allclose(entered, np.arange(count) - count, atol=1e-9)


def test_progress_stays_within_the_stage():
    reward, goal, frames = staged_task(0.3)
    curve = observe_all(reward, frames)
    ends = np.concatenate([[0], goal.milestone_frames / goal.milestone_frames[-1]])
    assert (curve.progress >= ends[curve.subgoal_index] - 1e-6).all()
    assert (curve.progress <= ends[curve.subgoal_index + 1] + 1e-6).all()


def test_continuous_values_have_no_jump_and_telescope():
    reward, goal, frames = staged_task(0.02)
    curve = observe_all(reward, frames)
    np.testing.assert_allclose(curve.raw_reward[1:], np.diff(curve.value), atol=1e-9)
    typical = len(goal.milestones) / len(frames)
    assert np.abs(curve.raw_reward[1:]).max() < 6 * typical


def test_paper_reward_is_the_step_towards_the_old_milestone():
    reward, goal, frames = staged_task(0.1, shaping="paper")
    curve = observe_all(reward, frames)
    same = np.diff(curve.subgoal_index) == 0
    np.testing.assert_allclose(curve.raw_reward[1:][same], np.diff(curve.value)[same], atol=1e-9)
    jump = np.diff(curve.value)[~same] - curve.raw_reward[1:][~same]
    assert len(jump) == len(goal.milestones) - 1
    assert (jump > 0).all()
    at = np.flatnonzero(~same)[0] + 1
    first = np.linalg.norm(frames[: at + 1] - goal.milestones[0, 0], axis=1) / np.linalg.norm(
        frames[0] - goal.milestones[0, 0]
    )
    assert curve.raw_reward[at] == pytest.approx(first[at - 1] - first[at], abs=1e-5)


def test_bonus_comes_once():
    frames = None
    sums = []
    for bonus in (0.0, 10.0):
        reward, _, frames = staged_task(0.1, bonus=bonus, clip=1.0)
        sums.append(np.nansum(observe_all(reward, np.concatenate([frames, frames[::-1][:20], frames[-20:]])).reward))
    assert sums[1] - sums[0] == pytest.approx(10)


def test_leaving_the_goal_costs_what_coming_back_earns():
    reward, goal, frames = staged_task(0.0)
    curve = observe_all(reward, np.concatenate([frames, frames[::-1][:30], frames[-30:]]))
    assert curve.value[len(frames) - 1] == pytest.approx(0, abs=1e-6)
    assert curve.value[len(frames) + 29] < -0.2
    assert curve.value[-1] == pytest.approx(0, abs=1e-6)
    assert set(curve.subgoal_index[len(frames) :]) == {len(goal.milestones) - 1}


def test_bad_frames_change_nothing():
    reward, _, frames = staged_task(0.1)
    clean = observe_all(reward, frames)
    reward.reset()
    gaps = np.insert(frames, [0, 50, 51], np.nan, axis=0)
    curve = observe_all(reward, gaps)
    bad = ~np.isfinite(gaps).all(axis=1)
    assert np.isnan(curve.value[bad]).all() and np.isnan(curve.reward[bad]).all()
    np.testing.assert_array_equal(curve.value[~bad], clean.value)
    np.testing.assert_array_equal(curve.reward[~bad], clean.reward)
    np.testing.assert_array_equal(curve.subgoal_index[~bad], clean.subgoal_index)


@pytest.mark.parametrize("at", [0, 60])
def test_a_hand_before_the_lens_changes_nothing(at):
    reward, _, frames = staged_task(0.1)
    clean = observe_all(reward, frames)
    reward.reset()
    hand = 3 * np.random.default_rng(7).standard_normal((5, frames.shape[1])).astype(np.float32)
    curve = observe_all(reward, np.concatenate([frames[:at], hand, frames[at:]]))
    covered = slice(at, at + 5)
    assert (curve.uncertainty[covered] > 1).all()
    assert np.isnan(curve.reward[covered]).all()
    assert np.isfinite(curve.value[covered]).all()
    np.testing.assert_array_equal(np.delete(curve.value, covered), clean.value)
    np.testing.assert_array_equal(np.delete(curve.reward, covered), clean.reward)


def test_one_goal_image_works():
    frames = execution(way_points(legs=1), 50)
    reward = StagedReward(unused)
    reward.reset(goal_from_images(frames[-1:], "g"))
    curve = observe_all(reward, frames)
    assert curve.value[0] == -1
    assert curve.value[-1] == pytest.approx(0, abs=1e-6)
    assert np.isnan(curve.progress).all()


def test_starting_on_the_goal_stays_finite():
    frames = execution(way_points(legs=1), 50, noise=0.01)
    reward = StagedReward(unused)
    reward.reset(goal_from_images(frames[:1], "g"))
    curve = observe_all(reward, frames)
    assert np.isfinite(curve.value).all()


def test_no_goal():
    with pytest.raises(RuntimeError, match="call reset"):
        StagedReward(unused).observe(np.zeros((1, 4), np.float32))
    reward = StagedReward(unused)
    reward.reset()
    with pytest.raises(RuntimeError, match="call reset"):
        reward.observe(np.zeros((1, 4), np.float32))


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(-50, 50, width=32)))
def test_any_frames_give_finite_values_and_stages_in_order(frames):
    points = way_points(dimensions=3)
    goal = goal_from_demonstration(execution(points, 90), "g", [20, 44, 66, 89])
    reward = StagedReward(unused)
    reward.reset(goal)
    curve = observe_all(reward, frames)
    assert np.isfinite(curve.value).all()
    assert (np.diff(curve.subgoal_index) >= 0).all()
    assert ((curve.progress >= 0) & (curve.progress <= 1)).all()
    good = np.flatnonzero(~(curve.uncertainty > 1))
    np.testing.assert_allclose(curve.raw_reward[good][1:], np.diff(curve.value[good]), atol=1e-6)
    assert np.isnan(curve.raw_reward[curve.uncertainty > 1]).all()
