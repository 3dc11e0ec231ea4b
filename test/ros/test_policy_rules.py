"""When a robot may move, which images are acted on, and what is sent, without a node."""

from __future__ import annotations

import numpy as np
import pytest

from v2r_core.deploy.pacing import Pacer
from v2r_msgs.msg import Episode, Reward
from v2r_ros.actions import ActionMap
from v2r_ros.commander import Commander
from v2r_ros.episodes import Beginning, EpisodeLog
from v2r_ros.safety import Guard, Limits
from v2r_ros.scoring import blank_reward

LIMITS = Limits(image_timeout=0.5, reward_timeout=1.0, warm_up_time=2.0)


def ns(seconds: float) -> int:
    """The stamp of a moment."""
    return 10**11 + round(seconds * 1e9)


def well(guard: Guard, now: float, status: int = Reward.STATUS_OK) -> Guard:
    """Everything is fine at that moment."""
    guard.image(now, ns(now))
    guard.acting(now)
    guard.acted(now)
    guard.reward(now, status, ns(now))
    return guard


def begun(now: float = 0.0, limits: Limits = LIMITS) -> Guard:
    guard = Guard(limits)
    guard.begin(now)
    return guard


def test_camera_and_actor_are_not_late_at_the_beginning_and_everything_is_later() -> None:
    guard = begun(10.0)
    guard.reward(10.0, Reward.STATUS_OK, ns(10.0))
    assert guard.reason(10.4) == ""
    assert "no image for 0.60 s" in guard.reason(10.6)
    guard.image(10.6, ns(10.6))
    assert "no action" in guard.reason(10.7)
    guard.acted(10.7)
    assert guard.reason(10.7) == ""
    guard.image(11.1, ns(11.1))
    guard.acted(11.1)
    assert "no reward for 1.10 s" in guard.reason(11.1)


def test_no_reward_yet_is_a_reason_to_stop() -> None:
    guard = well(begun(), 0.0)
    guard.begin(5.0)  # rewards of the last episode count no more
    assert guard.reason(5.0) == "no reward yet, 0.00 s after the beginning"
    guard.reward(5.1, Reward.STATUS_WARMING_UP, ns(5.0))
    assert guard.reason(5.1) == ""


def test_rewards_that_are_old_however_steadily_they_come() -> None:
    guard = begun()
    for tick in range(1, 60):
        now = tick / 20
        well(guard, now)
        guard.reward(now, Reward.STATUS_OK, ns(now - min(now, 0.9)))
        assert guard.reason(now) == ""
    guard.reward(now, Reward.STATUS_OK, ns(now - 1.25))
    assert guard.reason(now) == "the newest reward lies 1.25 s behind the newest image, more than 1 s"
    guard.image(now, ns(now - 2.0))  # a late image makes nothing newer
    assert guard.reason(now).startswith("the newest reward lies 1.25 s")
    guard.reward(now, Reward.STATUS_OK, ns(now))
    assert guard.reason(now) == ""
    guard.image(now, ns(now + 1.5))
    guard.reward(now, Reward.STATUS_OK, 0)  # nobody knows how old that is
    assert guard.reason(now) == ""


def test_images_far_apart_make_no_reward_old() -> None:
    guard = begun()
    for second in range(0, 20, 2):  # of simulated time, in a lockstep that takes a tenth of it
        guard.image(second / 10, ns(second))
        assert second == 0 or guard.reason(second / 10) == ""
        guard.acted(second / 10)
        guard.reward(second / 10 + 0.05, Reward.STATUS_OK, ns(second))
    guard.image(1.85, ns(20))
    assert guard.reason(1.85) == ""
    guard.image(1.86, ns(22))
    assert "4.00 s behind" in guard.reason(1.86)


def test_every_cause_is_counted_once_a_stop() -> None:
    guard = well(begun(), 0.1)
    for now in (0.7, 0.8, 0.9):
        assert guard.reason(now)
    assert guard.stopped_for(0.9) == pytest.approx(0.2)
    well(guard, 1.0)
    assert guard.reason(1.0) == ""
    assert guard.stopped_for(1.0) == 0
    guard.missed_deadline()
    assert "deadline" in guard.reason(1.1)
    guard.reward(1.2, Reward.STATUS_OK, ns(1.2))
    guard.alive(0)
    assert "not alive" in guard.reason(1.2)
    guard.alive(1)
    assert guard.reason(1.2) == ""
    guard.acted(1.2, "no action: NaN")
    assert "NaN" in guard.reason(1.2)
    assert guard.stops == {"camera": 1, "reward deadline": 1, "actor": 1}  # one stop had two causes in a row


def test_an_actor_that_does_not_come_back() -> None:
    guard = well(begun(), 0.0)
    guard.acting(0.1)
    guard.image(0.7, ns(0.7))
    guard.reward(0.7, Reward.STATUS_OK, ns(0.7))
    assert "has been running for 0.60 s" in guard.reason(0.7)


def test_warming_up_is_fine_for_a_while_on_end() -> None:
    guard = begun()
    for now in np.arange(0.0, 2.0, 0.1):
        assert well(guard, now, Reward.STATUS_WARMING_UP).reason(now) == ""
    assert "warming up" in well(guard, 2.2, Reward.STATUS_WARMING_UP).reason(2.2)
    assert well(guard, 2.3).reason(2.3) == ""
    for now in np.arange(2.4, 4.0, 0.1):  # a window that starts anew
        assert well(guard, now, Reward.STATUS_WARMING_UP).reason(now) == ""


@pytest.mark.parametrize("status", [1, 2, 3, 4, 6, 7, 255])
def test_any_other_status_stops(status: int) -> None:
    assert "status" in well(begun(), 0.0, status).reason(0.0)


def test_without_a_reward_only_camera_and_actor_count() -> None:
    guard = begun(limits=Limits(0.5, None, 2.0))
    guard.image(100.0, ns(100.0))
    guard.acted(100.0)
    guard.alive(0)
    assert guard.reason(100.0) == ""
    assert "no image" in guard.reason(101.0)


# --- commander -------------------------------------------------------------------------------------------------------


def commander(hold: bool) -> tuple[Commander, list[list[float]]]:
    sent: list[list[float]] = []
    guard = Guard(Limits(100.0, None, 100.0))
    way = "hold" if hold else "zero"
    return Commander(ActionMap(2, [0.5]), way, guard, lambda command: sent.append(command.tolist())), sent


def test_a_late_action_of_an_episode_that_is_over_is_not_sent() -> None:
    robot, sent = commander(hold=False)
    robot.act(0, np.ones(2, np.float32))
    assert not sent
    robot.begin(0)
    robot.act(0, np.ones(2, np.float32))
    assert robot.in_force.tolist() == [1, 1]
    robot.end()
    robot.act(0, np.ones(2, np.float32))
    robot.begin(1)
    robot.act(0, np.ones(2, np.float32))
    assert sent == [[0.5, 0.5], [0, 0]]
    assert robot.in_force.tolist() == [0, 0]


def test_a_position_of_before_the_reset_is_not_held() -> None:
    robot, sent = commander(hold=True)
    robot.begin(0)
    robot.act(0, None)
    assert not sent  # nothing to hold yet
    robot.act(0, np.ones(2, np.float32))
    robot.act(0, None)
    robot.end()
    assert sent == [[0.5, 0.5]] * 3
    robot.begin(1)
    robot.guard.acted(0.0, "broken")
    assert robot.check() == "broken"
    assert len(sent) == 3


@pytest.mark.parametrize("hold", [True, False])
def test_who_waits_for_an_episode_is_not_sent_back_to_the_last_one(hold: bool) -> None:
    robot, sent = commander(hold)
    robot.begin(0)
    robot.act(0, np.ones(2, np.float32))
    robot.end()
    sent.clear()
    robot.stop_anew()
    assert sent == ([] if hold else [[0, 0]])


def test_a_command_and_back() -> None:
    actions = ActionMap(3, [0.5, -2.0, 1.0], [0.1, 0.0, 0.0], [-0.3], [0.3])
    action = np.array([0.2, 0.1, -0.9], np.float32)
    command = actions.command(action)
    assert command == pytest.approx([0.2, -0.2, -0.3])
    assert actions.action(command) == pytest.approx([0.2, 0.1, -0.3])  # what the limit left of it
    with pytest.raises(ValueError, match=r"is zero, but number 1 .* 0.1 to 0.3 \(action_low, action_high\)"):
        ActionMap(2, low=[-0.3, 0.1], high=[0.3]).check_zero()
    ActionMap(2, low=[-0.3, 0.0], high=[0.0, 0.2]).check_zero()
    for broken in (np.zeros(2, np.float32), np.array([np.nan, 0, 0], np.float32)):
        with pytest.raises(ValueError, match="3 finite numbers"):
            actions.command(broken)


# --- pacing ----------------------------------------------------------------------------------------------------------


def taken(pacer: Pacer, stamps: np.ndarray) -> np.ndarray:
    return np.array([stamp for stamp in stamps if pacer.due(int(stamp * 1e9))])


@pytest.mark.parametrize(("camera", "rate", "apart"), [(30, 30, 1), (30, 10, 3), (30, 15, 2), (25, 10, 3), (10, 20, 1)])
def test_every_so_manieth_image(camera: int, rate: int, apart: int) -> None:
    pacer = Pacer(1 / rate)
    jitter = np.random.default_rng(0).normal(0, 0.05 / camera, 300)
    found = taken(pacer, 100 + np.arange(300) / camera + jitter)
    assert len(found) == pytest.approx(300 / apart, rel=0.02)
    assert np.diff(found).min() > 0.7 * apart / camera
    assert pacer.too_slow == (camera == 10)


def test_lost_images_late_images_and_a_restarted_stream() -> None:
    pacer = Pacer(0.1)
    stamps = 50 + np.arange(60) / 30
    kept = np.delete(stamps, [9, 10, 11, 12, 33])
    assert np.diff(taken(pacer, kept)).max() < 0.25
    assert not pacer.due(int(51.9e9))  # late
    assert pacer.due(int(3e9))  # restarted
    pacer.restart()
    assert pacer.due(int(3.04e9))


def test_a_turn_that_was_of_no_use_is_given_back() -> None:
    pacer = Pacer(0.1)
    moments = [int(at * 1e9) for at in 50 + np.arange(20) / 30]
    assert [pacer.due(moment) for moment in moments[:7]] == [True, False, False] * 2 + [True]
    assert pacer.late(moments[6]) and pacer.late(moments[4]) and not pacer.late(moments[7])
    pacer.give_back(moments[3], moments[0])  # another one had its turn since
    assert not pacer.due(moments[7])
    pacer.give_back(moments[6], moments[3])
    assert [pacer.due(moment) for moment in moments[8:12]] == [True, False, False, True]


def test_a_turn_given_back_to_a_stream_that_is_over_stops_nothing() -> None:
    pacer = Pacer(0.1)
    taken(pacer, 50 + np.arange(20) / 30)
    assert pacer.due(int(3e9))
    pacer.give_back(int(3e9), int(50.6e9))
    assert pacer.due(int(3.033e9))


# --- episodes --------------------------------------------------------------------------------------------------------


def reward(stamp: float, status: int = 0, **numbers: float) -> Reward:
    message = blank_reward(Reward().header)
    message.header.stamp.sec, message.header.stamp.nanosec = int(stamp), int(stamp % 1 * 1e9)
    message.status = status
    for name, number in numbers.items():
        setattr(message, name, number)
    return message


def test_the_summary_of_an_episode() -> None:
    log = EpisodeLog(4, 10 * 10**9, "camera")
    assert not log.belongs(reward(9.9))
    assert log.belongs(reward(10)) and log.belongs(reward(0))
    log.add(reward(10, Reward.STATUS_WARMING_UP, progress=0.1), 0.9, 2)
    assert not log.add(reward(11, progress=0.95, reward=0.5), 0.9, 2)
    assert not log.add(reward(12, Reward.STATUS_OUT_OF_DISTRIBUTION), 0.9, 2)
    assert not log.add(reward(13, progress=0.95, reward=0.25), 0.9, 2)
    assert not log.add(reward(14, progress=0.5, reward=-1.0), 0.9, 2)
    assert not log.add(reward(15, progress=0.92), 0.9, 2)
    assert log.add(reward(16, progress=0.91), 0.9, 2)
    assert not log.add(reward(17, progress=1.0), 0.0, 2)  # 0: never
    episode = log.message(Episode.END_SUCCESS, 17 * 10**9 + 5)
    assert (episode.episode, episode.steps, episode.invalid_steps) == (4, 6, 2)
    assert episode.return_sum == pytest.approx(-0.25)
    assert (episode.final_progress, episode.max_progress) == (1.0, 1.0)
    assert (episode.duration.sec, episode.duration.nanosec) == (7, 5)
    assert log.too_long(int(12.5e9), 2.5) and not log.too_long(int(12.4e9), 2.5) and not log.too_long(10**15, 0.0)


def test_an_episode_without_rewards_has_no_progress() -> None:
    episode = EpisodeLog(0, 10**9, "").message(Episode.END_FAULT, 0)
    assert np.isnan(episode.final_progress) and np.isnan(episode.max_progress)
    assert (episode.return_sum, episode.duration.sec) == (0, 0)


def test_a_reward_that_names_no_goal_is_for_no_other_goal() -> None:
    log = EpisodeLog(0, 10**9, "")
    log.add(reward(1, goal_id="door"), 0.9, 1)
    nameless = reward(2, Reward.STATUS_STALE_IMAGE)
    assert not log.goal_changed(nameless)
    log.add(nameless, 0.9, 1)
    assert not log.goal_changed(reward(3, goal_id="door"))
    assert log.goal_changed(reward(3, goal_id="drawer"))
    assert log.message(Episode.END_FAULT, 4 * 10**9).goal_id == "door"


def test_stamps_that_go_back() -> None:
    log = EpisodeLog(0, 100 * 10**9, "")
    for moment in (100.0, 105.0, 104.2, 105.1):  # one was late
        assert log.gone_back(int(moment * 1e9)) == ""
    assert log.gone_back(int(104.0e9)) == "the images' stamps went back from 105.10 s to 104.00 s"
    assert log.gone_back(int(99.9e9)) == "the images' stamps went back from 105.10 s to 99.90 s"
    assert log.message(Episode.END_FAULT, 3 * 10**9).duration.sec == 5  # the node's clock went back as well
    assert "from 100.00 s to 99.99 s" in EpisodeLog(0, 100 * 10**9, "").gone_back(int(99.99e9))


def test_an_episode_is_held_back_until_there_is_a_reward() -> None:
    start = Beginning(0.5)
    early = reward(10)
    start.add(0.0, early)  # of before the first image
    assert not start.image(1.0, 10 * 10**9)
    start.add(1.1, reward(9.9))  # of before the reset
    assert not start.image(1.1, int(10.1e9)) and not start.overdue(1.5)
    start.add(1.2, early)
    assert start.image(1.2, int(10.2e9))
    assert (start.reward, start.arrived_s) == (early, 1.2)
    start.start()
    assert start.reward is None and not start.overdue(100.0)
    assert not start.image(2.0, 20 * 10**9)
    start.add(2.1, reward(20))
    assert not start.image(2.2, 10**9)  # time was put back: that was of before the reset
    start.add(2.3, reward(1))
    assert start.image(2.3, int(1.1e9))


def test_an_episode_is_held_back_for_no_longer_than_a_reward_may_take() -> None:
    start = Beginning(0.5)
    assert not start.image(1.0, 10 * 10**9)
    assert not start.image(1.5, int(10.5e9))
    assert start.image(1.6, int(10.6e9))
    assert Beginning(None).image(1.0, 10 * 10**9)
