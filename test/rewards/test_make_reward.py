"""Rewards by name, and what they import."""

import subprocess
import sys

import pytest

from v2r_core.rewards import make_reward
from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.staged_reward import StagedReward


@pytest.mark.parametrize(("name", "kind"), [("vip", GoalDistance), ("uvd", StagedReward), ("pixel", GoalDistance)])
def test_names(name, kind):
    reward = make_reward(name, pixel_embedding, {"scale": 2, "clip": 1.5, "cameras": "min"})
    assert isinstance(reward, kind)
    assert (reward.kind, reward.needs_goal, reward.history, reward.stochastic) == ("value", True, 1, False)


def test_pixel_brings_its_own_encoder():
    assert make_reward("pixel", None).embed is pixel_embedding
    with pytest.raises(ValueError, match="needs an encoder"):
        make_reward("vip", None)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("vipp", {}, " is unknown; one of vip, uvd, pixel"),
        ("vip", {"threshold": 0.2}, "no parameter 'threshold'; it has scale, clip"),
        ("uvd", {"embed": 1}, "no parameter 'embed'"),
        ("vip", {"scale": 0}, "scale = 0: a finite number above 0"),
        ("vip", {"scale": float("nan")}, "scale = nan"),
        ("vip", {"scale": "2"}, "scale = '2'"),
        ("vip", {"scale": True}, "scale = True"),
        ("vip", {"clip": -1}, "clip = -1"),
        ("uvd", {"cameras": "max"}, "cameras = 'max': one of mean, min"),
        ("vip", {"compat": "mine"}, "compat = 'mine'"),
        ("uvd", {"threshold": 1.0}, "threshold = 1.0: a number between 0 and 1"),
        ("uvd", {"bonus": -1}, "bonus = -1"),
        ("uvd", {"shaping": "mine"}, "shaping = 'mine'"),
    ],
)
def test_parameters_are_checked(name, parameters, message):
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        make_reward(name, pixel_embedding, parameters)


def test_no_torch_and_no_scipy():
    modules = "v2r_core.rewards, v2r_core.rewards.quality, v2r_core.plot"
    code = f"import sys, {modules}; print({{'torch', 'scipy'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
