"""TimeRewarder: its targets, its samples, that it learns time, its goal-conditioned form, and what it exports."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v2r_core.methods.method import Horizon
from v2r_core.methods.time_rewarder import (
    PairPicker,
    TimeRewarder,
    TimeRewarderRecipe,
    bin_centres,
    distance_loss,
    expected_distance,
    two_hot,
)

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)
WIDTH = 4 * 1280
"""Four quarters of EfficientNet-Lite0's last map."""


def recipe(**changes):
    return dataclasses.replace(TimeRewarderRecipe.tiny(), size=64, dim=16, hidden=32, pair_hidden=32, **changes)


def batch_of(rng, count, negatives=0):
    """Features whose first number is time, in videos of 21 frames; the last `negatives` stay where they are."""
    picker = PairPicker(1.0)
    frames = np.array([picker(21, rng) for _ in range(count)])
    features = rng.standard_normal((count, 3, WIDTH)).astype(np.float32) * 0.1
    features[..., 0] = 8 * (frames / 20 - 0.5)
    names = [f"demos/{number}.mp4#0" for number in range(count)]
    for row in range(count - negatives, count):
        features[row, ..., 0] = -4
        features[row, ..., 1] = 8
        names[row] = f"random/{row}.mp4#0"
    return {
        "features": torch.from_numpy(features),
        "frames": torch.from_numpy(frames),
        "lengths": torch.full((count,), 21),
        "names": names,
    }


def train(method, rng, steps, negatives=0):
    optimizer = method.optimizer()
    for _ in range(steps):
        step = method(batch_of(rng, 64, negatives), 0)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
    return step


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.integers(2, 40))
def test_two_hot_is_a_distribution_on_two_neighbours_with_the_right_mean(distances, bins):
    target = two_hot(torch.tensor(distances, dtype=torch.float32), bins)
    assert torch.allclose(target.sum(1), torch.ones(len(distances)), atol=1e-5)
    assert ((target > 0).sum(1) <= 2).all()
    assert torch.allclose(target @ bin_centres(bins), torch.tensor(distances), atol=1e-5)


def test_the_loss_is_lowest_at_the_target():
    target = torch.tensor([0.3, -0.7])
    right = torch.log(two_hot(target, 20) + 1e-9)
    assert torch.allclose(expected_distance(right), target, atol=1e-4)
    assert distance_loss(right, target) < distance_loss(torch.zeros(2, 20), target)
    assert distance_loss(right, target) < distance_loss(right.flip(1), target)


def test_short_intervals_are_drawn_more_often_and_both_orders():
    rng = np.random.default_rng(0)
    pairs = np.array([PairPicker(4.0)(30, rng) for _ in range(4000)])
    assert (pairs[:, 2] == 29).all()
    assert pairs.min() >= 0
    assert pairs.max() <= 29
    interval = pairs[:, 1] - pairs[:, 0]
    assert (np.abs(interval) < 10).sum() > 2 * (np.abs(interval) >= 20).sum()
    assert abs((interval > 0).mean() - (interval < 0).mean()) < 0.05
    assert np.array([PairPicker(3.0)(2, rng) for _ in range(20)]).max() == 1


def test_it_learns_how_far_apart_two_frames_are():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    method = TimeRewarder(recipe(lr=3e-3), HORIZON)
    step = train(method, rng, 150)
    assert float(step.metrics["absolute_error"]) < 0.1
    network = method.reward_export().networks["pair"].module
    batch = batch_of(rng, 64)
    with torch.inference_mode():
        phi = method.top(batch["features"])
        found = network(phi[:, 0], phi[:, 1]).numpy()
    truth = (batch["frames"][:, 1] - batch["frames"][:, 0]).numpy() / 20
    assert np.corrcoef(found, truth)[0, 1] > 0.95


def test_rollouts_that_lead_nowhere_are_far_from_the_goal():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    method = TimeRewarder(recipe(lr=3e-3, goal_form=True, negatives=("random/*",)), HORIZON)
    train(method, rng, 150, negatives=16)
    batch = batch_of(rng, 64, negatives=16)
    with torch.inference_mode():
        phi = method.top(batch["features"])
        goal = phi[0, 2].expand(16, -1)
        left = expected_distance(method.pair(phi[48:, 0], goal))
        still = expected_distance(method.pair(phi[48:, 0], phi[48:, 1]))
        near = expected_distance(method.pair(phi[:48, 2], goal.repeat(3, 1)))
    assert float(left.mean()) > 0.8
    assert float(still.abs().mean()) < 0.2
    assert float(near.abs().mean()) < 0.2
    assert method.reward_export().parameters["form"] == "goal"


@pytest.mark.parametrize("negatives", [(), ("random/*",)])
def test_between_two_frames_of_a_rollout_that_leads_nowhere_lies_no_time_though_it_moves_as_a_success_does(negatives):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    method = TimeRewarder(recipe(lr=3e-3, negatives=negatives), HORIZON)
    optimizer = method.optimizer()
    for _ in range(200):
        batch = batch_of(rng, 64)
        batch["features"][32:, :, 1] = 8
        batch["names"][32:] = [f"random/{row}.mp4#0" for row in range(32)]
        optimizer.zero_grad()
        method(batch, 0).loss.backward()
        optimizer.step()
    phi = torch.zeros(2, 2, WIDTH)
    phi[:, 0, 0], phi[:, 1, 0] = -4, 4
    phi[1, :, 1] = 8
    with torch.inference_mode():
        done, away = expected_distance(method.pair(*method.top(phi).unbind(1))).tolist()
    assert done > 0.5
    assert away < 0.2 if negatives else away > 0.5


def test_a_batch_without_any_success_has_no_goals():
    method = TimeRewarder(recipe(goal_form=True, negatives=("*",)), HORIZON)
    step = method(batch_of(np.random.default_rng(0), 8), 0)
    assert torch.isfinite(step.loss)


def test_a_pattern_that_no_video_matches_is_refused_with_some_of_the_videos():
    method = TimeRewarder(recipe(goal_form=True, negatives=("random/*", "*fail*")), HORIZON)
    demos = [f"demos/{number}.mp4" for number in range(20)]
    with pytest.raises(ValueError, match="no video matches '\\*fail\\*'") as refused:
        method.check_videos([*demos, "random/0.mp4"])
    assert "demos/0.mp4" in str(refused.value) and "random/0.mp4 and 16 more" in str(refused.value)
    with pytest.raises(ValueError, match=r"'random/\*'.*the videos are demos/0.mp4$"):
        method.check_videos(demos[:1])
    method.check_videos([*demos, "random/0.mp4", "elsewhere/failed.mp4"])
    TimeRewarder(recipe(goal_form=True), HORIZON).check_videos(demos)


def test_patterns_that_match_all_videos_are_refused():
    method = TimeRewarder(recipe(goal_form=True, negatives=("a/*", "b/*")), HORIZON)
    with pytest.raises(ValueError, match=r"'a/\*', 'b/\*' match all 2 videos"):
        method.check_videos(["a/0.mp4", "b/0.mp4"])
    method.check_videos(["a/0.mp4", "b/0.mp4", "c/0.mp4"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"bins": 1}, "bins is 1"), ({"decay": -1.0}, "decay -1.0")],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TimeRewarderRecipe(**changes)
