"""Stable-Baselines3 learns from a video reward: its agents get what the wrapper pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_video import moving_square
from toy_environment import Film

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.rl.wrappers import VideoReward

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env

STEPS = 64


class Heard(BaseCallback):
    """Keeps the rewards and the infos that an agent gets."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []
        self.infos: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.rewards += np.asarray(self.locals["rewards"]).tolist()
        self.infos += self.locals["infos"]
        return True


@pytest.fixture
def env(tiny_bundle: Path) -> VideoReward:
    """A film of 40 frames, one of which cannot be scored."""
    scorer = Scorer(load_bundle(tiny_bundle), providers=["cpu"])
    scorer.set_goal(scorer.goal_from_video(moving_square(), "film"))
    return VideoReward(Film(black=5), scorer, mode="sparse", scale=2.0, sparse_weight=0.5)


def expected(infos: list[dict[str, Any]]) -> np.ndarray:
    video = np.nan_to_num([info["video_reward"] for info in infos])
    return 2.0 * video + 0.5 * np.array([info["sparse"] for info in infos])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_of_stable_baselines_finds_nothing(env: VideoReward) -> None:
    check_env(env)


@pytest.mark.parametrize("kind", [PPO, SAC])
def test_an_agent_is_paid_what_the_scorer_says(env: VideoReward, kind: type[PPO] | type[SAC]) -> None:
    small = {"n_steps": STEPS // 2, "n_epochs": 1} if kind is PPO else {"buffer_size": 100, "learning_starts": 50}
    agent = kind("CnnPolicy", env, batch_size=8, seed=0, device="cpu", **small)
    before = [weights.detach().clone() for weights in agent.policy.parameters()]
    heard = Heard()
    agent.learn(STEPS, callback=heard)
    assert len(heard.rewards) == STEPS
    np.testing.assert_allclose(heard.rewards, expected(heard.infos), atol=1e-6)
    assert sum(np.isnan(info["video_reward"]) for info in heard.infos) >= 2, "the black frame of both episodes"
    assert np.std(heard.rewards) > 1e-3
    kept = agent.rollout_buffer.rewards if kind is PPO else agent.replay_buffer.rewards[:STEPS]
    # PPO adds its estimate of what would have followed to the last reward of an episode that was cut off.
    cut = np.array([kind is PPO and info.get("TimeLimit.truncated", False) for info in heard.infos[-kept.size :]])
    np.testing.assert_allclose(kept.ravel()[~cut], np.array(heard.rewards[-kept.size :])[~cut], atol=1e-6)
    after = list(agent.policy.parameters())
    assert all(bool(weights.isfinite().all()) for weights in after)
    assert any(bool((new != old).any()) for new, old in zip(after, before, strict=True)), "it learned from them"
