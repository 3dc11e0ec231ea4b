"""Every image message gets an answer: a number that is believed, or a status that says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from toy_rewards import write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.rewards.goal import goal_from_demonstration, goal_from_images
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


WARM = [Reward.STATUS_WARMING_UP] * 3


def windowed(folder: Path, rate: float | None = 10.0, **options) -> MessageScorer:
    """Scores windows of 4 frames that are 0.1 s apart."""
    cameras = len(options.get("cameras", [""]))
    bundle = load_bundle(write_learned_bundle(folder / "windowed", "viper", rate))
    inner = Scorer(bundle, providers=["cpu"], paced=True, cameras=cameras)
    return MessageScorer(inner, lambda m: message_to_rgb(m, 1 << 20), **options)


def watch(scorer: MessageScorer, stamps: list[float], broken: set[int] = frozenset()) -> dict[int, Reward]:
    """What the node does with a camera: answers by number of the image, for those whose turn it is."""
    frames, answers = moving_square(), {}
    for number, seconds in enumerate(stamps):
        stamp = START + round(seconds * SECOND)
        message = image(frames[number % len(frames)], stamp)
        if number in broken:
            message.step = 3
        if scorer.due(message, stamp):
            answers[number] = scorer.score(message, stamp).message
    return answers


def statuses(answers: dict[int, Reward]) -> list[int]:
    return [answer.status for answer in answers.values()]


@pytest.mark.parametrize(("fps", "apart"), [(10, 1), (12, 1), (20, 2), (25, 3), (30, 3), (60, 6)])
def test_of_a_fast_camera_as_many_frames_are_taken_as_offline(tmp_path: Path, fps: int, apart: int) -> None:
    scorer = windowed(tmp_path)
    jitter = np.random.default_rng(0).uniform(-0.1, 0.1, 40)
    answers = watch(scorer, [(number + wobble) / fps for number, wobble in enumerate(jitter)])
    assert list(answers) == list(range(0, 40, apart))
    assert not scorer.too_slow
    assert statuses(answers) == WARM + [Reward.STATUS_OK] * (len(answers) - 3)

    class Video(list):
        stamps = np.arange(40) / fps

    offline = Scorer(scorer.scorer.bundle, providers=["cpu"]).score(Video(moving_square())).curve
    for number, answer in list(answers.items())[3:]:
        assert answer.reward == pytest.approx(offline.reward[number], abs=1e-4)


def test_a_reward_without_a_window_takes_every_image(scorer: MessageScorer) -> None:
    assert len(watch(scorer, [number / 1000 for number in range(40)])) == 40
    assert len(watch(scorer, [100 + 9 * number for number in range(5)])) == 5
    assert not scorer.too_slow


def test_a_lost_image_of_a_fast_camera_leaves_the_window_whole(tmp_path: Path) -> None:
    kept = [number for number in range(40) if number != 12]
    answers = watch(windowed(tmp_path), [number / 30 for number in kept])
    assert [kept[number] for number in answers][:7] == [0, 3, 6, 9, 13, 16, 19]
    assert statuses(answers) == WARM + [Reward.STATUS_OK] * (len(answers) - 3)


@pytest.mark.parametrize(("broken", "then"), [({12}, Reward.STATUS_OK), ({12, 13}, Reward.STATUS_WARMING_UP)])
def test_after_a_broken_image_the_next_one_has_its_turn(tmp_path: Path, broken: set[int], then: int) -> None:
    """The first one to come after it is 1.33 periods behind the last good one, the second one 1.67."""
    answers = watch(windowed(tmp_path), [number / 30 for number in range(40)], broken)
    good = 12 + len(broken)
    assert list(answers)[:6] == [0, 3, 6, 9, 12, 13]
    assert list(answers)[5 + len(broken) - 1 :][:3] == [good, good + 3, good + 6]
    assert {answers[number].status for number in broken} == {Reward.STATUS_BAD_IMAGE}
    assert answers[9].status == Reward.STATUS_OK
    assert [answers[good + ahead].status for ahead in (0, 3, 6)] == [then] * 3
    assert answers[good + 9].status == Reward.STATUS_OK


@pytest.mark.parametrize("stamp", [5.0, 0.28])
def test_an_image_that_is_refused_for_its_stamp_takes_no_turn(tmp_path: Path, stamp: float) -> None:
    scorer, frames = windowed(tmp_path), moving_square()
    watch(scorer, [0.0, 0.1, 0.2, 0.3])
    odd, now = image(frames[0], START + int(stamp * SECOND)), START + int(0.33 * SECOND)
    assert scorer.due(odd, now)
    assert scorer.score(odd, now).message.status == Reward.STATUS_BAD_IMAGE
    assert not scorer.due(image(frames[4], now), now)
    assert scorer.due(image(frames[4], START + int(0.4 * SECOND)), START + int(0.4 * SECOND))


def test_a_late_image_takes_no_turn_though_the_one_before_is_not_scored_yet(tmp_path: Path) -> None:
    scorer, frames = windowed(tmp_path), moving_square()
    answered = [scorer.due(image(frames[0], START + int(at * SECOND)), START + SECOND) for at in (0.0, 0.1, 0.08, 0.15)]
    assert answered == [True, True, True, False]


def test_a_camera_that_is_too_slow_never_fills_the_window_and_is_complained_about(tmp_path: Path) -> None:
    scorer = windowed(tmp_path)
    assert set(statuses(watch(scorer, [number / 5 for number in range(12)]))) == {Reward.STATUS_WARMING_UP}
    assert scorer.too_slow
    later = START + 3 * SECOND
    problem = scorer.score(image(moving_square()[0], later), later).problem
    assert "0.800 s apart" in problem and "wants 0.100 s" in problem and "raise the rate" in problem


def test_frames_that_the_model_had_no_time_for_break_the_window(tmp_path: Path) -> None:
    scorer, frames = windowed(tmp_path), moving_square()
    watch(scorer, [number / 10 for number in range(6)])
    for at in (0.6, 0.7):  # the mailbox keeps the newest only
        assert scorer.due(image(frames[6], START + int(at * SECOND)), START + SECOND)
    scored = scorer.score(image(frames[7], START + int(0.7 * SECOND)), START + SECOND)
    assert scored.message.status == Reward.STATUS_WARMING_UP
    assert "model is too slow" in scored.problem
    assert scored.message.episode == 0


def test_a_window_without_a_rate_ends_with_the_stream(tmp_path: Path) -> None:
    """Its stride is 2, so it reaches over 7 frames."""
    scorer = windowed(tmp_path, rate=None, max_gap=1.0)
    times = [*(number / 10 for number in range(10)), *(5 + number / 10 for number in range(10))]
    answers = statuses(watch(scorer, times))
    assert answers == 2 * ([Reward.STATUS_WARMING_UP] * 6 + [Reward.STATUS_OK] * 4)


def test_a_window_with_a_long_period_is_no_gap(tmp_path: Path) -> None:
    answers = statuses(watch(windowed(tmp_path, rate=0.5, max_gap=1.0), [2.0 * number for number in range(8)]))
    assert answers == WARM + [Reward.STATUS_OK] * 5


@pytest.mark.parametrize("begin", [MessageScorer.reset, MessageScorer.begin])
def test_an_episode_begins_with_an_empty_window(tmp_path: Path, begin: Callable[[MessageScorer], None]) -> None:
    scorer = windowed(tmp_path)
    watch(scorer, [number / 10 for number in range(6)])
    begin(scorer)
    stamps = [START + int(at * SECOND) for at in (0.6, 0.7, 0.8, 0.9)]
    scored = [scorer.score(image(frame, s), s) for frame, s in zip(moving_square(), stamps, strict=False)]
    assert [each.message.status for each in scored] == [*WARM, Reward.STATUS_OK]
    assert not any(each.problem for each in scored)


def test_a_restarted_camera_fills_the_window_anew(tmp_path: Path) -> None:
    scorer = windowed(tmp_path)
    watch(scorer, [50 + number / 30 for number in range(20)])
    answers = watch(scorer, [number / 60 for number in range(40)])
    assert list(answers)[:4] == [0, 6, 12, 18], "the rate may be another one"
    assert {answer.episode for answer in answers.values()} == {1}
    assert statuses(answers)[:3] == WARM


def test_images_without_stamps_are_paced_by_the_clock(tmp_path: Path) -> None:
    scorer, seen = windowed(tmp_path), []
    for number, frame in enumerate(moving_square()):
        now = START + number * SECOND // 30
        if scorer.due(image(frame, 0), now):
            seen.append((number, scorer.score(image(frame, 0), now)))
    assert [number for number, _ in seen][:5] == [0, 3, 6, 9, 12]
    assert [scored.message.status for _, scored in seen] == WARM + [Reward.STATUS_OK] * (len(seen) - 3)
    assert all("stamp 0" in scored.problem for _, scored in seen)
    later = START + 10 * SECOND
    again = scorer.score(image(moving_square()[0], 0), later)
    assert again.message.status == Reward.STATUS_WARMING_UP
    assert "apart" in again.problem


def test_simulated_time_may_begin_at_0_and_begin_again(tmp_path: Path) -> None:
    scorer, frames = windowed(tmp_path), moving_square()
    for _ in range(2):
        found = []
        for number in range(60):
            stamp = number * SECOND // 20
            if scorer.due(image(frames[number % 40], stamp), stamp):
                found.append(scorer.score(image(frames[number % 40], stamp), stamp).message)
        assert [message.status for message in found][:4] == [*WARM, Reward.STATUS_OK]
        assert len(found) in (30, 31)


def test_the_first_camera_sets_the_pace_and_a_late_second_one_costs_no_turn(tmp_path: Path) -> None:
    scorer, frames = windowed(tmp_path, cameras=["left", "right"], max_skew=0.02), moving_square()
    found = {}
    for number in range(40):
        stamp = START + number * SECOND // 30
        first = image(frames[number], stamp)
        second = image(frames[number], stamp - SECOND if number == 12 else stamp + SECOND // 100)
        if scorer.due(first, stamp):
            found[number] = scorer.score((first, second), stamp).message
    assert list(found)[:8] == [0, 3, 6, 9, 12, 13, 16, 19]
    assert found[12].status == Reward.STATUS_STALE_IMAGE
    good = [message for number, message in found.items() if number != 12]
    assert [message.status for message in good] == WARM + [Reward.STATUS_OK] * (len(good) - 3)
    assert good[-1].component_names == ["left", "right"]
    assert np.isnan(good[-1].component_values).all()
    assert math.isfinite(good[-1].reward) and math.isnan(good[-1].value)


def test_each_answer_has_the_picture_of_the_subgoal_it_works_towards(tiny_bundle: Path) -> None:
    inner = Scorer(load_bundle(tiny_bundle), "uvd", providers=["cpu"])
    frames = moving_square()
    goal = goal_from_demonstration(inner.embed(frames), "split", [12, 25, 39])
    targets = [np.full((4, 4, 3), number, np.uint8) for number in range(3)]
    scorer = MessageScorer(inner, lambda m: message_to_rgb(m, 1 << 20))
    assert scorer.score(image(frames[0], START), START).target is None
    scorer.set_goal(goal, "split", targets=targets)
    pursued = set()
    for number, frame in enumerate(frames, 1):
        stamp = START + number * SECOND // 30
        scored = scorer.score(image(frame, stamp), stamp)
        assert scored.target is targets[scored.message.subgoal_index]
        pursued.add(scored.message.subgoal_index)
    assert len(pursued) > 1
    # Without pictures of its own a goal is not shown with those of the one before.
    scorer.set_goal(goal, "saved")
    assert scorer.score(image(frames[0], START + 3 * SECOND), START + 3 * SECOND).target is None
