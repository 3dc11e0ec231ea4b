"""The reward wrapper: an agent is paid what the scorer says of the frames, whatever the environment is."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle
from toy_environment import Film
from toy_rewards import LENGTH, write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import NoGoalError, Scorer, Status
from v2r_core.rewards.reward import RewardSample
from v2r_core.rl.wrappers import VideoReward
from v2r_core.video.source import open_video

STILL = np.zeros(2, np.float32)
FRAMES = moving_square()


def play(env: gymnasium.Env[Any, Any], steps: int = len(FRAMES) - 1) -> tuple[list[float], list[dict[str, Any]]]:
    """Rewards of an episode, and the infos with that of the reset first."""
    infos, rewards = [env.reset(seed=0)[1]], []
    for _ in range(steps):
        _, reward, *_, info = env.step(STILL)
        rewards.append(reward)
        infos.append(info)
    return rewards, infos


def stepped(scorer: Scorer, frames: list[np.ndarray]) -> list[RewardSample]:
    """What the scorer says of the frames when nothing is around it."""
    scorer.reset()
    return [scorer.step(frame)[0] for frame in frames]


def with_goal(bundle: Path) -> Scorer:
    """A scorer whose goal is the film itself."""
    scorer = Scorer(load_bundle(bundle), providers=["cpu"])
    scorer.set_goal(scorer.goal_from_video(FRAMES, "film"))
    return scorer


def column(infos: list[dict[str, Any]], key: str) -> list[float]:
    return [info[key] for info in infos]


def test_alone_pays_the_scorers_reward_of_each_new_frame(tiny_bundle: Path) -> None:
    scorer = with_goal(tiny_bundle)
    expected = stepped(scorer, FRAMES)
    env = VideoReward(Film(), tiny_bundle, goal=scorer.goal, scale=2.5)
    rewards, infos = play(env)
    np.testing.assert_allclose(rewards, [2.5 * sample.reward for sample in expected[1:]], rtol=1e-6)
    assert min(rewards) > 0, "every step of the film comes nearer to its end"
    for key, name in (("video_reward", "reward"), ("value", "value"), ("progress", "progress")):
        np.testing.assert_allclose(column(infos, key), [getattr(sample, name) for sample in expected], rtol=1e-6)
    assert column(infos, "status") == [Status.WARMING_UP] + [Status.OK] * (len(FRAMES) - 1)
    assert all(type(info[key]) is int for info in infos for key in ("status", "video_missing"))
    assert column(infos, "video_missing") == [0] * len(FRAMES)
    assert infos[-1]["progress"] == 1.0
    assert infos[10]["sparse"] == 1.0, "what the environment says stays"


def test_every_episode_starts_anew(tiny_bundle: Path) -> None:
    env = VideoReward(Film(), with_goal(tiny_bundle), mode="potential")
    play(env, 17)
    first, again = play(env), play(env)
    assert first[0] == again[0]
    assert math.isnan(again[1][0]["video_reward"])


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_adds_what_the_environment_says(tiny_bundle: Path, sparse: bool) -> None:
    scorer = with_goal(tiny_bundle)
    alone, _ = play(VideoReward(Film(), scorer, scale=3.0))
    both, _ = play(VideoReward(Film(sparse=sparse), scorer, mode="sparse", scale=3.0, sparse_weight=2.0))
    steps = np.arange(1, len(FRAMES))
    # Without info["sparse"] it is the environment's own reward.
    own = (steps % 10 == 0) if sparse else -0.25 * steps
    np.testing.assert_allclose(np.array(both) - alone, 2.0 * own, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_potential_is_the_discounted_difference_of_values(tiny_bundle: Path, weight: float) -> None:
    scorer = with_goal(tiny_bundle)
    values = np.array([sample.value for sample in stepped(scorer, FRAMES)])
    env = VideoReward(Film(), scorer, mode="potential", scale=4.0, gamma=0.9, sparse_weight=weight)
    rewards, infos = play(env)
    sparse = weight * (np.arange(1, len(FRAMES)) % 10 == 0)
    np.testing.assert_allclose(rewards, 4.0 * (0.9 * values[1:] - values[:-1]) + sparse, atol=1e-6)
    # It telescopes: all that shaping pays is the discounted difference of the ends.
    paid = sum(0.9**step * (reward - own) for step, (reward, own) in enumerate(zip(rewards, sparse, strict=True)))
    assert paid == pytest.approx(4.0 * (0.9 ** len(rewards) * values[-1] - values[0]), abs=1e-5)
    np.testing.assert_allclose(column(infos, "value"), values, atol=1e-6)


@pytest.mark.parametrize("mode", ["alone", "potential"])
def test_a_frame_that_cannot_be_scored_pays_nothing_and_is_counted(tiny_bundle: Path, mode: Any) -> None:
    scorer = with_goal(tiny_bundle)
    rewards, infos = play(VideoReward(Film(black=20), scorer, mode=mode, gamma=0.9, sparse_weight=0.0))
    clean, _ = play(VideoReward(Film(), scorer, mode=mode, gamma=0.9, sparse_weight=0.0))
    assert infos[20]["status"] == Status.OUT_OF_DISTRIBUTION
    assert math.isnan(infos[20]["video_reward"]) and math.isnan(infos[20]["value"])
    assert rewards[19] == 0.0
    assert np.isfinite(rewards).all()
    np.testing.assert_allclose(rewards[:19] + rewards[21:], clean[:19] + clean[21:], atol=1e-6)
    missing = column(infos, "video_missing")
    assert missing[19:21] == [0, 1]
    if mode == "potential":
        # From the last value that there was, so that shaping still telescopes.
        gap = 0.9 * infos[21]["value"] - infos[19]["value"]
        assert rewards[20] == pytest.approx(gap) and missing[-1] == 1
    else:
        assert missing[-1] == sum(not math.isfinite(info["video_reward"]) for info in infos[1:])


def test_a_first_frame_out_of_distribution_delays_shaping(tiny_bundle: Path) -> None:
    env = VideoReward(Film(black=0), with_goal(tiny_bundle), mode="potential", sparse_weight=0.0)
    rewards, infos = play(env, 3)
    assert rewards[0] == 0.0 and rewards[1] != 0.0
    assert column(infos, "video_missing") == [0, 1, 1, 1]


@pytest.mark.parametrize("reward", ["viper", "diffusion"])
def test_a_window_gets_one_frame_a_step(tmp_path: Path, reward: str) -> None:
    bundle = write_learned_bundle(tmp_path / reward, reward, 10.0)
    expected = stepped(Scorer(load_bundle(bundle), providers=["cpu"], paced=True), FRAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, infos = play(VideoReward(Film(dt=0.1), bundle))
    warm = LENGTH[reward] - 1
    assert column(infos, "status") == [Status.WARMING_UP] * warm + [Status.OK] * (len(FRAMES) - warm)
    np.testing.assert_allclose(column(infos, "video_reward"), [sample.reward for sample in expected], rtol=1e-5)
    assert rewards[: warm - 1] == [0.0] * (warm - 1) and all(rewards[warm - 1 :])
    assert infos[-1]["video_missing"] == warm - 1
    assert math.isnan(infos[-1]["value"])


def test_a_window_spans_the_time_that_it_did_in_training(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "viper", "viper", 10.0)
    expected = stepped(Scorer(load_bundle(bundle), parameters={"stride": 5}, providers=["cpu"]), FRAMES)
    _, infos = play(VideoReward(Film(dt=0.02), bundle))
    np.testing.assert_allclose(column(infos, "video_reward"), [sample.reward for sample in expected], rtol=1e-5)
    warm = (LENGTH["viper"] - 1) * 5
    assert column(infos, "status")[: warm + 1] == [Status.WARMING_UP] * warm + [Status.OK]


def test_a_step_too_long_for_the_window_is_warned_of(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "viper", "viper", 10.0)
    with pytest.warns(UserWarning, match="a step lasts 0.2 s, .* 'viper' were 0.1 s apart"):
        VideoReward(Film(dt=0.2), bundle)


def test_the_value_itself_pays_and_an_unknown_one_is_the_last_one(tiny_bundle: Path) -> None:
    env = VideoReward(Film(black=20), with_goal(tiny_bundle), mode="value", scale=2.0)
    rewards, infos = play(env)
    values = column(infos, "value")
    assert math.isnan(values[20])
    values[20] = values[19]
    np.testing.assert_allclose(rewards, 2 * np.array(values[1:]))
    assert infos[-1]["video_missing"] == 1


def test_potential_is_refused_for_step_rewards(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "viper", "viper", 10.0)
    with pytest.raises(ValueError, match="'potential' needs a reward with values; 'viper' scores steps"):
        VideoReward(Film(), bundle, mode="potential")


def test_goals(tiny_bundle: Path, tmp_path: Path, clip: Path) -> None:
    scorer = with_goal(tiny_bundle)
    assert scorer.goal is not None
    picture, saved = tmp_path / "goal.png", tmp_path / "goal.safetensors"
    Image.fromarray(FRAMES[-1]).save(picture)
    scorer.goal.save(saved)
    with pytest.raises(NoGoalError, match="needs a goal and the bundle has none; give `goal`"):
        VideoReward(Film(), tiny_bundle)
    reference, _ = play(VideoReward(Film(), tiny_bundle, goal=scorer.goal))
    for goal in (saved, str(saved), picture):
        rewards, infos = play(VideoReward(Film(), tiny_bundle, goal=goal))
        np.testing.assert_allclose(rewards, reference, atol=1e-6)
        assert math.isnan(infos[-1]["progress"]) == (goal == picture)
    with open_video(clip) as video:
        expected = scorer.goal_from_video(video, "square.mp4")
    found = VideoReward(Film(), tiny_bundle, goal=clip).scorer.goal
    assert found is not None and found.name.split()[0] == "square.mp4"
    np.testing.assert_array_equal(found.milestones, expected.milestones)
    for wrong in (tmp_path / "none.png", tmp_path / "none.mp4", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=wrong.name):
            VideoReward(Film(), tiny_bundle, goal=wrong)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad\.png: not an image"):
        VideoReward(Film(), tiny_bundle, goal=tmp_path / "bad.png")


def test_a_goal_of_another_bundle_is_refused(tiny_bundle: Path) -> None:
    scorer = with_goal(tiny_bundle)
    pixel = Scorer(load_bundle(tiny_bundle), "pixel", providers=["cpu"])
    with pytest.raises(ValueError, match="make the goal again with this bundle"):
        VideoReward(Film(), pixel, goal=scorer.goal)


def test_folder_bundle_and_scorer_are_the_same(tiny_bundle: Path) -> None:
    goal = with_goal(tiny_bundle).goal
    given = [tiny_bundle, str(tiny_bundle), load_bundle(tiny_bundle), Scorer(load_bundle(tiny_bundle))]
    played = [play(VideoReward(Film(), bundle, goal=goal))[0] for bundle in given]
    assert played[0] == played[1] == played[2] == played[3]


def test_frames_of_render_where_the_observation_is_no_frame(tiny_bundle: Path) -> None:
    scorer = with_goal(tiny_bundle)
    seen, _ = play(VideoReward(Film(), scorer))
    env = VideoReward(Film(seen=False), scorer, render=True)
    assert play(env)[0] == seen
    observation, _ = env.reset()
    assert env.observation_space.contains(observation) and observation.shape == (1,)


def test_a_render_that_gives_no_frame_says_what_it_gave(tiny_bundle: Path) -> None:
    film = Film(seen=False)
    film.render = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"render\(\) gave NoneType, uint8 \(H, W, 3\) expected"):
        VideoReward(film, with_goal(tiny_bundle), render=True).reset()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mode": "both"}, "mode is 'both', one of alone, sparse, potential, value expected"),
        ({"scale": math.nan}, "scale is nan"),
        ({"sparse_weight": math.inf}, "sparse_weight is inf"),
        ({"gamma": 0.0}, r"gamma is 0.0, above 0 and at most 1"),
        ({"gamma": 1.5}, "gamma is 1.5"),
    ],
)
def test_refused_numbers(tiny_bundle: Path, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoReward(Film(), with_goal(tiny_bundle), **keywords)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 255, (3, 48, 64), np.uint8),
        gymnasium.spaces.Box(0, 1, (48, 64, 3), np.float32),
        gymnasium.spaces.Dict({"pixels": gymnasium.spaces.Box(0, 255, (48, 64, 3), np.uint8)}),
    ],
)
def test_observations_that_are_no_frames_are_refused(tiny_bundle: Path, space: gymnasium.Space[Any]) -> None:
    film = Film()
    film.observation_space = space
    with pytest.raises(ValueError, match=r"frames uint8 \(H, W, 3\) expected; with render=True"):
        VideoReward(film, with_goal(tiny_bundle))


def test_dt_is_that_of_the_environment(tiny_bundle: Path) -> None:
    assert VideoReward(Film(dt=0.3), with_goal(tiny_bundle)).dt == 0.3


def paid_film(bundle: Path, goal: Path) -> VideoReward:
    return VideoReward(Film(), bundle, goal=goal)


@pytest.mark.slow
def test_worker_processes_pay_the_same(tmp_path: Path) -> None:
    bundle, goal = write_tiny_bundle(tmp_path / "bundle"), tmp_path / "goal.safetensors"
    made = with_goal(bundle).goal
    assert made is not None
    made.save(goal)
    expected, _ = play(paid_film(bundle, goal), 5)
    envs = gymnasium.vector.AsyncVectorEnv([partial(paid_film, bundle, goal)] * 2, context="spawn")
    try:
        envs.reset(seed=0)
        rewards = np.array([envs.step(np.zeros((2, 2), np.float32))[1] for _ in range(5)])
    finally:
        envs.close()
    np.testing.assert_allclose(rewards, np.array(expected)[:, None].repeat(2, axis=1), rtol=1e-6)
