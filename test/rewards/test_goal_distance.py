"""VIP's reward: minus the distance, its differences, and what happens to bad frames."""

import numpy as np
import pytest
from synthetic import execution, way_points

from v2r_core.rewards import make_reward
from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.rewards.goal import goal_from_demonstration, goal_from_images
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.reward import RewardCurve


def unused(frames):
    raise AssertionError("embed must not be called")


def observe_all(reward, embeddings):
    return RewardCurve.from_samples(reward.observe(each[None]) for each in embeddings)


def moving_square(frames, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 40, (frames, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        at = round(i / (frames - 1) * 20)
        image[at : at + 10, at : at + 10] = 220
    return images


@pytest.fixture
def task():
    points = way_points(legs=1)
    demonstration = execution(points, 60, noise=0.1)
    return goal_from_demonstration(demonstration, "g"), execution(points, 80, noise=0.1, seed=2)


def test_value_is_minus_the_distance_and_reward_its_difference(task):
    goal, frames = task
    reward = GoalDistance(unused, scale=2.0)
    reward.reset(goal)
    curve = observe_all(reward, frames)
    expected = -np.linalg.norm(frames.astype(np.float64) - goal.milestones[0, 0], axis=1)
    np.testing.assert_allclose(curve.value, expected, rtol=1e-6)
    assert np.isnan(curve.reward[0])
    np.testing.assert_allclose(curve.raw_reward[1:], np.diff(expected), atol=1e-5)
    np.testing.assert_allclose(curve.reward[1:], 2 * np.diff(expected), atol=1e-5)
    assert set(curve.subgoal_index) == {0}
    assert set(curve.subgoal_count) == {1}


def test_clip_comes_after_scale(task):
    goal, frames = task
    reward = GoalDistance(unused, scale=10.0, clip=0.5)
    reward.reset(goal)
    curve = observe_all(reward, frames)
    np.testing.assert_allclose(curve.reward[1:], np.clip(10 * curve.raw_reward[1:], -0.5, 0.5))
    assert np.abs(curve.raw_reward[1:]).max() > 0.05


def test_rewards_telescope_over_skipped_and_bad_frames(task):
    goal, frames = task
    reward = GoalDistance(unused)
    reward.reset(goal)
    full = observe_all(reward, frames)
    broken = frames[::7].copy()
    broken[3] = np.nan
    broken[5, 0] = np.inf
    reward.reset()
    part = observe_all(reward, broken)
    last = (len(broken) - 1) * 7
    assert np.nansum(part.reward) == pytest.approx(full.value[last] - full.value[0], abs=1e-5)
    for name in ("reward", "raw_reward", "value", "progress", "uncertainty"):
        assert np.isnan(getattr(part, name)[[3, 5]]).all(), name
    np.testing.assert_allclose(part.value[[4, 6]], full.value[[28, 42]])


def test_a_hand_before_the_lens_ends_no_step(task):
    goal, frames = task
    reward = GoalDistance(unused)
    reward.reset(goal)
    clean = observe_all(reward, frames)
    reward.reset()
    covered = frames.copy()
    covered[30:35] += 5 * np.random.default_rng(7).standard_normal((5, 256)).astype(np.float32)
    curve = observe_all(reward, covered)
    assert (curve.uncertainty[30:35] > 1).all()
    assert np.isnan(curve.reward[30:35]).all()
    assert np.isfinite(curve.value[30:35]).all()
    assert curve.reward[35] == pytest.approx(clean.value[35] - clean.value[29])


def test_progress_rises_and_uncertainty_tells_strangers(task):
    goal, frames = task
    reward = GoalDistance(unused)
    reward.reset(goal)
    curve = observe_all(reward, frames)
    assert curve.progress[0] < 0.1
    assert curve.progress[-1] > 0.95
    assert curve.uncertainty.max() < 1
    stranger = np.random.default_rng(9).standard_normal((1, 256)).astype(np.float32)
    assert reward.observe(stranger).uncertainty > 1


def test_uncertainty_is_the_nearest_distance(task):
    goal, frames = task
    reward = GoalDistance(unused)
    reward.reset(goal)
    nearest = np.linalg.norm(goal.demonstration[:, 0] - frames[10], axis=1).min()
    assert reward.observe(frames[10][None]).uncertainty == pytest.approx(nearest / goal.uncertainty_threshold, rel=1e-3)
    on_it = reward.observe(goal.demonstration[20])
    assert on_it.uncertainty == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("rule", ["mean", "min"])
def test_cameras(rule):
    points = way_points(legs=1)
    two = np.stack([execution(points, 50, 0.1, seed=seed) for seed in (1, 2)], axis=1)
    goal = goal_from_demonstration(two, "g")
    reward = GoalDistance(unused, cameras=rule)
    reward.reset(goal)
    seen = np.stack([execution(points, 50, 0.1, seed=seed) for seed in (3, 4)], axis=1)[25]
    each = np.linalg.norm(seen - two[-1], axis=1)
    sample = reward.observe(seen)
    assert sample.value == pytest.approx(-(each.mean() if rule == "mean" else each.min()), rel=1e-5)
    cross = np.linalg.norm(two - seen, axis=2)
    nearest = (cross.mean(axis=1) if rule == "mean" else cross.min(axis=1)).min()
    own = goal_from_demonstration(two, "g", cameras=rule).uncertainty_threshold
    assert sample.uncertainty == pytest.approx(nearest / own, rel=1e-3)
    assert 0.3 < sample.progress < 0.7


def test_subgoals_are_left_out():
    frames = execution(way_points(legs=1), 100)
    reward = GoalDistance(unused)
    reward.reset(goal_from_demonstration(frames, "g", [40, 99]))
    curve = observe_all(reward, frames)
    assert np.abs(curve.progress - np.linspace(0, 1, 100)).max() < 0.08


def test_a_goal_image_gives_no_progress_and_no_uncertainty(task):
    reward = GoalDistance(unused)
    reward.reset(goal_from_images(task[1][-1:], "g"))
    sample = reward.observe(task[1][3][None])
    assert np.isfinite(sample.value)
    assert np.isnan([sample.progress, sample.uncertainty]).all()


def test_official_reward_is_the_value_itself(task):
    goal, frames = task
    reward = GoalDistance(unused, compat="official")
    reward.reset(goal)
    curve = observe_all(reward, frames)
    assert np.isnan(curve.reward[0])
    np.testing.assert_array_equal(curve.reward[1:], curve.value[1:])


@pytest.mark.parametrize("name", ["pixel", "uvd"])
def test_score_equals_steps(name):
    reward = make_reward(name, pixel_embedding)
    demonstration = moving_square(60)
    goal = goal_from_demonstration(pixel_embedding(demonstration), "g", [20, 40, 59])
    frames = moving_square(37, seed=3)
    curve = reward.score(frames, goal)
    reward.reset()
    steps = RewardCurve.from_samples(reward.step(frame) for frame in frames)
    for field in ("reward", "raw_reward", "value", "progress", "uncertainty", "subgoal_index", "subgoal_count"):
        np.testing.assert_allclose(getattr(curve, field), getattr(steps, field), atol=1e-5, err_msg=field)
    assert curve.progress[-1] > 0.9


def test_several_cameras_go_through_score():
    frames = np.stack([moving_square(30), moving_square(30, seed=4)], axis=1)
    embeddings = np.stack([pixel_embedding(each) for each in frames])
    reward = GoalDistance(pixel_embedding)
    curve = reward.score(iter(frames), goal_from_demonstration(embeddings, "g"))
    assert curve.value[-1] == pytest.approx(0, abs=1e-5)


def test_what_does_not_fit_is_refused(task):
    reward = GoalDistance(unused)
    with pytest.raises(RuntimeError, match="call reset"):
        reward.observe(task[1][:1])
    reward.reset(task[0])
    with pytest.raises(ValueError, match=r"\(2, 256\).*\(1, 256\)"):
        reward.observe(task[1][:2])
    with pytest.raises(ValueError, match="uint8"):
        reward.step(np.zeros((8, 8, 3)))


def test_no_frames_give_an_empty_curve(task):
    assert len(GoalDistance(unused).score([], task[0])) == 0
