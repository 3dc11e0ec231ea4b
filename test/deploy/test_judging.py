"""What is said about a goal is what the reward itself has of it; and one restart of a stream is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from toy_rewards import write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.cameras import UnpairedError
from v2r_core.deploy.description import reward_info_fields
from v2r_core.deploy.judging import Judged, StreamJudge
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.rewards.calibration import distance
from v2r_core.rewards.goal import goal_from_demonstration, goal_from_images
from v2r_core.rewards.reward import RewardSample
from v2r_core.video.pixels import ImageError

SECOND = 1_000_000_000
START = 1_000 * SECOND
FRAMES = moving_square()
Step = Callable[[], tuple[RewardSample, Status]]


def fail_with(error: Exception) -> Step:
    def step() -> tuple[RewardSample, Status]:
        raise error

    return step


def make(folder: Path, reward: str, **options: object) -> Scorer:
    bundle = write_learned_bundle(folder / "learned", "time", form="goal")
    return Scorer(load_bundle(bundle), reward, providers=["cpu"], **options)


@pytest.mark.parametrize(("reward", "pursued"), [("vip", 1), ("pixel", 1), ("time", 1), ("uvd", 4)])
def test_the_number_of_subgoals_is_the_rewards_own(tmp_path: Path, reward: str, pursued: int) -> None:
    """Whatever the goal has, and also where an image has no numbers."""
    scorer = make(tmp_path, reward)
    judge = StreamJudge(scorer)
    without = judge.judge(START, START, lambda: scorer.step(FRAMES[0]))
    assert (without.status, without.fields(None)["subgoal_count"]) == (Status.NO_GOAL, 0)
    assert reward_info_fields(scorer, "", 1.0, 0.0)["subgoal_count"] == 0
    goal = goal_from_demonstration(scorer.embed(FRAMES), "split", [10, 20, 30, 39])
    judge.set_goal(goal)
    good = judge.judge(START + 1, START + 1, lambda: scorer.step(FRAMES[0]))
    bad = judge.judge(START + 2, START + 2, fail_with(ImageError("torn")))
    assert good.sample is not None
    assert good.sample.subgoal_count == pursued
    for judged in (good, bad, judge.stale()):
        assert judged.fields(goal)["subgoal_count"] == pursued
    assert reward_info_fields(scorer, "split", 1.0, 0.0)["subgoal_count"] == pursued


def test_goals_in_no_order_are_no_subgoals(tmp_path: Path) -> None:
    scorer = make(tmp_path, "time")
    goal = goal_from_images(scorer.embed(FRAMES[:3]), "three", keep_all=True)
    scorer.set_goal(goal)
    sample, _ = scorer.step(FRAMES[5])
    assert StreamJudge(scorer).stale().fields(goal)["subgoal_count"] == sample.subgoal_count == 1


@pytest.mark.parametrize("reward", ["vip", "uvd"])
@pytest.mark.parametrize("rule", ["mean", "min"])
def test_the_threshold_is_the_one_that_uncertainty_is_measured_by(tmp_path: Path, reward: str, rule: str) -> None:
    scorer = make(tmp_path, reward, cameras=2, parameters={"cameras": rule})
    assert np.isnan(reward_info_fields(scorer, "", 1.0, 0.0)["uncertainty_threshold"])
    noise = np.random.default_rng(0).integers(0, 256, (40, *FRAMES[0].shape), dtype=np.uint8)
    goal = scorer.goal_from_video(list(zip(FRAMES, noise, strict=True)), "pair")
    assert goal.cameras == "mean"
    scorer.set_goal(goal)
    view = (np.roll(FRAMES[7], 9, axis=0), noise[0] // 2)
    sample, _ = scorer.step(view)
    nearest = distance(goal.demonstration, scorer.embed([view])[0], rule).min()
    threshold = reward_info_fields(scorer, "", 1.0, 0.0, ("left", "right"))["uncertainty_threshold"]
    assert sample.uncertainty * threshold == pytest.approx(nearest, rel=1e-3)
    assert nearest > 0.1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError("torn"), Status.BAD_IMAGE),
        (UnpairedError("silent"), Status.STALE_IMAGE),
        (RuntimeError("driver"), Status.INTERNAL_ERROR),
    ],
)
def test_a_restart_is_one_also_where_its_first_images_are_of_no_use(
    tmp_path: Path, error: Exception, status: Status
) -> None:
    scorer = make(tmp_path, "vip")
    judge = StreamJudge(scorer)
    judge.set_goal(scorer.goal_from_frames(FRAMES[-1:], "end"))

    def show(number: int, seconds: float, step: Step | None = None) -> Judged:
        stamp = START + round(seconds * SECOND)
        return judge.judge(stamp, stamp, step or (lambda: scorer.step(FRAMES[number])))

    assert [show(number, 100 + number / 30).episode for number in range(3)] == [0, 0, 0]
    unusable = [show(number, number / 30, fail_with(error)) for number in range(4)]
    assert [(judged.status, judged.episode) for judged in unusable] == [(status, 1)] * 4
    after = [show(number, number / 30) for number in range(4, 7)]
    assert [(judged.status, judged.episode) for judged in after] == [
        (Status.WARMING_UP, 1),
        (Status.OK, 1),
        (Status.OK, 1),
    ]
