"""Temporal distance as a reward: both forms, several goals and cameras, and what cannot be trusted."""

import numpy as np
import pytest

from v2r_core.rewards import make_reward
from v2r_core.rewards.goal import goal_from_demonstration, goal_from_images
from v2r_core.rewards.time_distance import TimeDistance


def pair(first, second):
    """A network for which the first number of an embedding is time."""
    return (second[:, 0] - first[:, 0]).astype(np.float32)


def embed(frames):
    return frames.reshape(len(frames), -1)[:, :2].astype(np.float32) / 255


def at(*times):
    return np.array([[[time, 1.0]] for time in times], np.float32)


@pytest.fixture
def forward():
    return TimeDistance(embed, {"pair": pair})


def test_the_value_is_the_distance_from_the_first_frame(forward):
    forward.reset()
    samples = forward.observe_many(at(0.2, 0.3, 0.6, 0.5))
    assert [sample.value for sample in samples] == pytest.approx([0, 0.1, 0.4, 0.3])
    assert np.isnan(samples[0].reward)
    assert [sample.reward for sample in samples[1:]] == pytest.approx([0.1, 0.3, -0.1])
    assert [sample.progress for sample in samples] == pytest.approx([0, 0.1, 0.4, 0.3])
    forward.reset()
    assert forward.observe(at(0.5)[0]).value == 0


def test_with_compat_paper_the_reward_is_the_distance_of_one_step():
    bent = {"pair": lambda first, second: np.tanh(3 * pair(first, second))}
    reward = TimeDistance(embed, bent, compat="paper")
    reward.reset()
    samples = reward.observe_many(at(0.0, 0.5, 0.9))
    assert samples[2].reward == pytest.approx(np.tanh(1.2), abs=1e-6)
    assert samples[2].value == pytest.approx(np.tanh(2.7), abs=1e-6)


def test_the_goal_form_takes_the_mean_over_several_goals():
    reward = TimeDistance(embed, {"pair": pair}, form="goal")
    assert reward.needs_goal
    with pytest.raises(RuntimeError, match="no goal"):
        reward.observe(at(0)[0])
    reward.reset(goal_from_images(at(0.9, 0.7), "two", keep_all=True))
    sample = reward.observe(at(0.5)[0])
    assert sample.value == pytest.approx(-0.3)
    assert sample.progress == pytest.approx(0.7)


def test_a_demonstration_calibrates_the_goal_form():
    reward = TimeDistance(embed, {"pair": pair}, form="goal")
    demonstration = at(*np.linspace(0, 1, 20))[:, 0]
    reward.reset(goal_from_demonstration(demonstration, "demo"))
    near, far = reward.observe(at(0.5)[0]), reward.observe(np.array([[0.5, 9.0]], np.float32))
    assert near.value == pytest.approx(-0.5)
    assert 0.3 < near.progress < 0.7
    assert near.uncertainty < 1 < far.uncertainty
    assert np.isnan(far.reward)


def test_an_embedding_that_is_not_finite_changes_nothing(forward):
    forward.reset()
    first, bad, last = forward.observe_many(np.concatenate([at(0.1), at(np.nan), at(0.4)]))
    assert first.value == 0
    assert np.isnan([bad.value, bad.reward, bad.uncertainty]).all()
    assert last.reward == pytest.approx(0.3)


@pytest.mark.parametrize(("rule", "expected"), [("mean", 0.25), ("min", 0.1)])
def test_several_cameras_become_one_distance(rule, expected):
    reward = TimeDistance(embed, {"pair": pair}, cameras=rule)
    reward.reset()
    start = np.array([[0.0, 0], [0.0, 0]], np.float32)
    reward.observe(start)
    moved = np.array([[0.1, 0], [0.4, 0]], np.float32)
    assert reward.observe(moved).value == pytest.approx(expected)


def test_scoring_a_video_equals_its_steps(forward):
    frames = [np.full((4, 4, 3), level, np.uint8) for level in range(0, 250, 12)]
    curve = forward.score(frames)
    forward.reset()
    steps = [forward.step(frame) for frame in frames]
    np.testing.assert_allclose(curve.value, [sample.value for sample in steps], atol=1e-6)
    np.testing.assert_allclose(curve.reward, [sample.reward for sample in steps], atol=1e-6)


def test_scale_and_clip_come_last():
    reward = TimeDistance(embed, {"pair": pair}, scale=10.0, clip=2.0)
    reward.reset()
    samples = reward.observe_many(at(0.0, 0.1, 0.9))
    assert [sample.reward for sample in samples[1:]] == pytest.approx([1.0, 2.0])
    assert samples[2].raw_reward == pytest.approx(0.8)


def test_what_was_not_learned_is_refused_by_name():
    with pytest.raises(ValueError, match="'time' has to be learned"):
        make_reward("time", embed)
    with pytest.raises(ValueError, match="pair expected"):
        TimeDistance(embed, {"other": pair})
    made = make_reward("time", embed, {"form": "goal"}, networks={"pair": pair})
    assert made.needs_goal
