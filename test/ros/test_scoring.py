"""Every image message gets an answer: a number that is believed, or a status that says why not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.rewards.goal import goal_from_images
from v2r_msgs.msg import Reward
from v2r_ros.images import message_to_rgb, rgb_to_message
from v2r_ros.scoring import MessageScorer, latency

SECOND = 1_000_000_000
START = 1_000 * SECOND


@pytest.fixture
def scorer(tiny_bundle: Path) -> MessageScorer:
    inner = Scorer(load_bundle(tiny_bundle), providers=["cpu"])
    inner.set_goal(inner.goal_from_video(moving_square(), "square"))
    return MessageScorer(inner, lambda m: message_to_rgb(m, 1 << 20), "test", max_stamp_future=1.0, max_gap=1.0)


def image(frame: np.ndarray, stamp_ns: int):
    message = rgb_to_message(frame)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, SECOND)
    message.header.frame_id = "camera"
    return message


def numbers(message: Reward) -> list[float]:
    return [message.reward, message.raw_reward, message.value, message.progress]


def play(scorer: MessageScorer, frames: list[np.ndarray], start: int = START) -> list[Reward]:
    stamps = [start + i * SECOND // 30 for i in range(len(frames))]
    return [scorer.score(image(f, s), s).message for f, s in zip(frames, stamps, strict=True)]


def test_status_constants_are_those_of_the_message() -> None:
    for status in Status:
        assert getattr(Reward, f"STATUS_{status.name}") == status


def test_a_played_demonstration_is_ok_and_reaches_the_goal(scorer: MessageScorer) -> None:
    answers = play(scorer, moving_square())
    assert answers[0].status == Reward.STATUS_WARMING_UP
    assert math.isnan(answers[0].reward)
    assert {a.status for a in answers[1:]} == {Reward.STATUS_OK}
    assert answers[-1].progress > 0.95
    assert answers[0].progress < 0.1
    assert sum(a.reward for a in answers[1:]) == pytest.approx(answers[-1].value - answers[0].value, abs=1e-4)
    assert [a.frame_count for a in answers] == list(range(1, 41))
    assert answers[5].header.frame_id == "camera"
    assert answers[5].goal_id == "square"


def test_broken_image(scorer: MessageScorer) -> None:
    broken = image(moving_square()[0], START)
    broken.step = 3
    scored = scorer.score(broken, START)
    assert scored.message.status == Reward.STATUS_BAD_IMAGE
    assert all(math.isnan(x) for x in numbers(scored.message))
    assert "step" in scored.problem
    assert scored.frame is None


def test_no_goal(tiny_bundle: Path) -> None:
    inner = Scorer(load_bundle(tiny_bundle), providers=["cpu"])
    bare = MessageScorer(inner, lambda m: message_to_rgb(m, 1 << 20))
    scored = bare.score(image(moving_square()[0], START), START)
    assert scored.message.status == Reward.STATUS_NO_GOAL
    assert all(math.isnan(x) for x in numbers(scored.message))
    assert "set_goal" in scored.problem


def test_stamp_zero_is_scored_but_reported(scorer: MessageScorer) -> None:
    scored = scorer.score(image(moving_square()[0], 0), START)
    assert scored.message.status == Reward.STATUS_WARMING_UP
    assert "stamp 0" in scored.problem
    assert math.isnan(latency(scored.message, START))
    assert scored.message.latency.sec == 0


def test_stamp_in_the_future_is_refused_and_forgotten(scorer: MessageScorer) -> None:
    frames = moving_square()
    scored = scorer.score(image(frames[0], START + 5 * SECOND), START)
    assert scored.message.status == Reward.STATUS_BAD_IMAGE
    assert "5.000 s in the future" in scored.problem
    assert scorer.score(image(frames[0], START), START).message.status == Reward.STATUS_WARMING_UP


def test_a_late_frame_is_refused_and_changes_nothing(scorer: MessageScorer) -> None:
    frames = moving_square()
    play(scorer, frames[:10])
    late = scorer.score(image(frames[2], START + 2 * SECOND // 30), START + SECOND)
    assert late.message.status == Reward.STATUS_BAD_IMAGE
    assert "older" in late.problem
    after = scorer.score(image(frames[10], START + SECOND // 3), START + SECOND).message
    assert after.status == Reward.STATUS_OK
    assert after.episode == 0


def test_a_restarted_stream_is_a_new_episode(scorer: MessageScorer) -> None:
    frames = moving_square()
    play(scorer, frames[:10], START + 100 * SECOND)
    again = scorer.score(image(frames[0], START), START + 101 * SECOND)
    assert again.message.status == Reward.STATUS_WARMING_UP
    assert again.message.episode == 1
    assert "restarted" in again.problem


def test_a_gap_is_no_step(scorer: MessageScorer) -> None:
    frames = moving_square()
    play(scorer, frames[:10])
    later = START + 60 * SECOND
    after = scorer.score(image(frames[30], later), later).message
    assert after.status == Reward.STATUS_WARMING_UP
    assert math.isnan(after.reward)
    assert math.isfinite(after.value)
    assert after.episode == 0


def test_out_of_distribution_holds_no_number_but_says_how_far(scorer: MessageScorer) -> None:
    frames = moving_square()
    play(scorer, frames[:10])
    strange = np.random.default_rng(1).integers(0, 256, frames[0].shape, dtype=np.uint8)
    answer = scorer.score(image(strange, START + SECOND), START + SECOND).message
    assert answer.status == Reward.STATUS_OUT_OF_DISTRIBUTION
    assert all(math.isnan(x) for x in numbers(answer))
    assert answer.uncertainty > 1.0


def test_rewards_sum_up_across_an_out_of_distribution_frame(scorer: MessageScorer) -> None:
    frames = moving_square()
    frames[5] = np.random.default_rng(1).integers(0, 256, frames[0].shape, dtype=np.uint8)
    answers = play(scorer, frames)
    assert answers[5].status == Reward.STATUS_OUT_OF_DISTRIBUTION
    total = sum(a.reward for a in answers if math.isfinite(a.reward))
    assert total == pytest.approx(answers[-1].value - answers[0].value, abs=1e-4)


def test_a_failing_model_is_a_status(scorer: MessageScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(scorer.scorer, "step", fail)
    scored = scorer.score(image(moving_square()[0], START), START)
    assert scored.message.status == Reward.STATUS_INTERNAL_ERROR
    assert "the driver is gone" in scored.problem


def test_scale_and_clip_apply_from_the_next_frame(scorer: MessageScorer) -> None:
    frames = moving_square()
    play(scorer, frames[:5])
    scorer.set_scale(1000.0, 0.25)
    answer = scorer.score(image(frames[5], START + SECOND), START + SECOND).message
    assert abs(answer.reward) == pytest.approx(0.25)
    assert abs(answer.raw_reward) < 0.25


def test_a_goal_of_another_encoder_is_refused_and_the_old_one_stays(scorer: MessageScorer) -> None:
    with pytest.raises(ValueError, match="48"):
        scorer.set_goal(goal_from_images(np.ones((1, 7), np.float32), "alien"), "test")
    assert scorer.scorer.goal is not None
    assert scorer.scorer.goal.name == "square"
    assert scorer.episode == 0


def test_latency_is_publication_minus_stamp(scorer: MessageScorer) -> None:
    answer = scorer.score(image(moving_square()[0], START), START).message
    assert latency(answer, START + 1_250_000_000) == pytest.approx(1.25)
    assert (answer.latency.sec, answer.latency.nanosec) == (1, 250_000_000)


@pytest.fixture
def pair(tiny_bundle: Path) -> MessageScorer:
    """Two cameras; the second one sees the task mirrored."""
    inner = Scorer(load_bundle(tiny_bundle), providers=["cpu"], cameras=2)
    views = [(frame, np.ascontiguousarray(frame[:, ::-1])) for frame in moving_square()]
    inner.set_goal(inner.goal_from_video(views, "pair"))
    return MessageScorer(inner, lambda m: message_to_rgb(m, 1 << 20), "test", cameras=["left", "right"], max_skew=0.1)


def test_two_cameras_give_one_reward_and_a_value_each(pair: MessageScorer) -> None:
    frame = moving_square()[-1]
    mirrored = np.ascontiguousarray(frame[:, ::-1])
    answer = pair.score((image(frame, START), image(mirrored, START + SECOND // 50)), START + SECOND).message
    assert answer.status == Reward.STATUS_WARMING_UP
    assert answer.component_names == ["left", "right"]
    assert list(answer.component_values) == pytest.approx([0.0, 0.0], abs=1e-5)
    assert answer.value == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("other", "word"), [(None, "sent nothing"), (START - SECOND, "1.000 s apart")])
def test_a_camera_that_lags_makes_the_answer_stale(pair: MessageScorer, other: int | None, word: str) -> None:
    frame = moving_square()[0]
    second = None if other is None else image(frame, other)
    scored = pair.score((image(frame, START), second), START + SECOND)
    assert scored.message.status == Reward.STATUS_STALE_IMAGE
    assert all(math.isnan(x) for x in numbers(scored.message))
    assert "'right'" in scored.problem
    assert word in scored.problem
