"""policy_node as a process: actions, their types and limits, episodes and how they end, recording."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from node_harness import make_graph
from policy_harness import FAR, PolicyUnderTest, moves
from std_srvs.srv import Trigger
from tiny_policy import GAIN, MARK, blob, write_linear, write_seeker

from v2r_core.deploy.policy import Policy, load_policy
from v2r_core.rl.replay import ReplayStore
from v2r_core.video.resize import Preprocess, resize_frame
from v2r_msgs.msg import Episode, Reward
from v2r_ros.graph import ACTIVATE, DEACTIVATE, Graph

NEAR = blob(MARK[0] - 0.1, MARK[1] + 0.05)


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    with make_graph(tmp_path) as graph:
        yield graph


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_seeker(tmp_path / "policy"))


def test_actions_are_those_of_the_policy_at_its_rate(graph: Graph, model: str) -> None:
    policy = Policy(load_policy(model), providers=("cpu",))
    node = PolicyUnderTest(graph, model=model).start()
    node.frame = NEAR
    seen = time.monotonic()
    node.wait(lambda: time.monotonic() > seen + 0.5)
    assert not node.actions  # it starts disabled
    assert node.enable().success
    node.until_moving()
    assert node.resets == 1
    assert node.actions[-1].data == pytest.approx(policy.act(NEAR), abs=1e-6)
    assert node.actions[-1].layout.dim[0].size == 2
    count, start = len(node.actions), time.monotonic()
    node.wait(lambda: len(node.actions) >= count + 20)
    assert 0.6 < time.monotonic() - start < 2.5  # 20 Hz would be one second
    node.wait(lambda: bool(node.value("latency p95 [s]")) and node.value("latency p95 [s]") != "nan")
    assert 0 < float(node.value("latency p50 [s]")) <= float(node.value("latency p95 [s]")) < 0.5
    assert float(node.value("action rate [Hz]")) == pytest.approx(20, abs=6)
    assert node.value("state") == "running"
    assert node.value("provider") == "CPUExecutionProvider"
    node.stop()


def test_images_are_taken_as_far_apart_as_in_training(graph: Graph, tmp_path: Path) -> None:
    node = PolicyUnderTest(graph, model=str(write_linear(tmp_path / "slow", rate=5.0)), image_timeout=2.0).start()
    node.enable()
    node.until_moving()
    images, actions = len(node.images), len(node.actions)
    node.wait(lambda: len(node.images) >= images + 40)
    assert len(node.actions) - actions == pytest.approx(10, abs=2)  # every fourth of 20 Hz
    node.stop()


def test_scale_offset_and_limits(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(
        graph,
        model=model,
        action_scale=[0.5, 2.0],
        action_offset=[0.1, 0.0],
        action_low=[-0.2, -1.5],
        action_high=[0.2, 1.5],
    ).start()
    node.frame = NEAR
    node.enable()
    node.until_moving()
    unscaled = Policy(load_policy(model), providers=("cpu",)).act(NEAR)
    assert node.actions[-1].data == pytest.approx([min(0.5 * unscaled[0] + 0.1, 0.2), 2 * unscaled[1]], abs=1e-6)
    node.frame = FAR
    node.wait(lambda: node.actions[-1].data[1] == pytest.approx(-1.5))
    node.enable(False)
    node.until_stopped()  # zero is zero, not the offset
    node.stop()


def test_a_twist(graph: Graph, model: str) -> None:
    axes = ["linear.x", "angular.z"]
    node = PolicyUnderTest(graph, TwistStamped, model=model, action_type="twist_stamped", twist_axes=axes).start()
    node.enable()
    node.wait(lambda: bool(node.actions))
    twist = node.actions[0].twist
    assert (twist.linear.x, twist.angular.z) == pytest.approx((1, -1))
    assert (twist.linear.y, twist.angular.x) == (0, 0)
    assert node.actions[0].header.frame_id == "base_link"
    assert node.actions[0].header.stamp.sec > 0
    node.enable(False)
    node.wait(lambda: node.actions[-1].twist.linear.x == 0 == node.actions[-1].twist.angular.z)
    node.stop()


def test_a_joint_trajectory_is_held_when_unsafe(graph: Graph, model: str) -> None:
    messages = pytest.importorskip("trajectory_msgs.msg")
    node = PolicyUnderTest(
        graph,
        messages.JointTrajectory,
        model=model,
        action_type="joint_trajectory",
        joint_names=["base", "elbow"],
        when_unsafe="hold",
    ).start()
    node.frame = NEAR
    node.enable()
    node.wait(lambda: bool(node.actions))
    assert node.actions[-1].joint_names == ["base", "elbow"]
    (point,) = node.actions[-1].points
    assert point.positions == pytest.approx([GAIN * 0.1, -GAIN * 0.05], abs=0.03)
    assert point.time_from_start.nanosec == pytest.approx(50_000_000, abs=10)
    assert node.actions[-1].header.stamp.sec == 0
    held = list(node.actions[-1].points[0].positions)
    node.status = Reward.STATUS_OUT_OF_DISTRIBUTION
    node.wait(lambda: "OUT_OF_DISTRIBUTION" in node.reason())
    node.frame = FAR
    count = len(node.actions)
    node.wait(lambda: len(node.actions) > count + 20)
    assert all(list(action.points[0].positions) == held for action in node.actions[count + 2 :])
    node.stop()


def test_success_ends_the_episode(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, success_progress=0.9, success_frames=4).start()
    node.enable()
    node.until_moving()
    node.wait(lambda: len(node.rewards) > 10)
    node.progress = 0.95
    node.wait(lambda: bool(node.episodes))
    node.until_stopped()
    (episode,) = node.episodes
    assert episode.end_reason == Episode.END_SUCCESS
    assert (episode.episode, episode.goal_id, episode.invalid_steps) == (0, "toy", 0)
    assert episode.header.frame_id == "camera"
    assert episode.final_progress == episode.max_progress == pytest.approx(0.95)
    assert episode.steps >= 10
    assert episode.return_sum == pytest.approx(0.25 * episode.steps)
    seconds = episode.duration.sec + episode.duration.nanosec * 1e-9
    assert seconds == pytest.approx(0.05 * episode.steps, rel=0.5)
    count = len(node.actions)
    later = time.monotonic() + 1.2
    node.wait(lambda: time.monotonic() > later)
    settled = len(node.actions)
    later = time.monotonic() + 0.5
    node.wait(lambda: time.monotonic() > later)
    assert len(node.actions) == settled > count  # the stop is repeated, then the topic is left to others
    node.stop()


def test_a_flicker_of_progress_is_no_success(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, success_progress=0.9, success_frames=4, time_limit=2.0).start()
    node.enable()
    node.until_moving()

    def flicker() -> bool:
        node.progress = 0.95 if len(node.rewards) % 4 else 0.1
        return bool(node.episodes)

    node.wait(flicker)
    assert node.episodes[0].end_reason == Episode.END_TIME_LIMIT
    assert node.episodes[0].max_progress == pytest.approx(0.95)
    node.stop()


def test_time_limit_and_restart(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, time_limit=0.5, auto_restart=True).start()
    node.enable()
    node.wait(lambda: len(node.episodes) >= 3)
    assert [episode.episode for episode in node.episodes[:3]] == [0, 1, 2]
    assert {episode.end_reason for episode in node.episodes} == {Episode.END_TIME_LIMIT}
    assert node.resets >= 3
    assert all(0.4 < e.duration.sec + e.duration.nanosec * 1e-9 < 1.0 for e in node.episodes)
    node.enable(False)
    node.until_stopped()
    done = len(node.episodes)
    later = time.monotonic() + 0.8
    node.wait(lambda: time.monotonic() > later)
    assert len(node.episodes) == done
    node.stop()


def test_a_simulation_may_start_by_itself(graph: Graph, model: str) -> None:
    answers = iter([False, True])

    def reset(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = next(answers), "not configured yet"
        return response

    graph.node.create_service(Trigger, "/sim/reset", reset)
    node = PolicyUnderTest(graph, model=model, start_enabled=True, reset_environment="/sim/reset").start()
    node.until_moving()
    assert node.resets >= 1
    assert next(answers, None) is None
    node.stop()


def test_the_services_in_every_state(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model)

    def end() -> Trigger.Response:
        return graph.call(Trigger, "/policy_node/end_episode", Trigger.Request())

    assert not node.enable().success
    assert node.enable(False).success
    assert not end().success
    node.start()
    assert not end().success
    assert node.enable().success
    node.until_moving()
    assert end().success
    node.until_stopped()
    assert node.episodes[-1].end_reason == Episode.END_REQUESTED
    node.enable()
    node.until_moving()
    assert graph.transition("/policy_node", DEACTIVATE)
    node.wait(lambda: len(node.episodes) == 2)
    assert not moves(node.actions[-1])
    assert not node.enable().success
    assert graph.transition("/policy_node", ACTIVATE)
    assert node.enable().success
    node.until_moving()
    node.stop()


def test_a_new_goal_ends_the_episode(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model).start()
    node.enable()
    node.until_moving()
    node.reward_on = False
    other = node.rewards[-1]
    other.goal_id = "another"
    other.header.stamp = graph.node.get_clock().now().to_msg()
    node.reward.publish(other)
    node.wait(lambda: bool(node.episodes))
    assert node.episodes[0].end_reason == Episode.END_REQUESTED
    node.stop()


def test_without_reward_only_when_it_is_asked_for(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, use_reward=False).start()
    node.reward_on = False
    assert "no reward stops the robot" in node.log()
    node.enable()
    node.until_moving()
    assert node.resets == 0
    later = time.monotonic() + 1.0
    node.wait(lambda: time.monotonic() > later)
    assert moves(node.actions[-1])
    node.stop()


def test_an_episode_may_begin_while_the_reward_warms_up(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, warm_up_time=0.6).start()
    node.status = Reward.STATUS_WARMING_UP
    node.enable()
    node.until_moving()
    node.until_stopped()
    node.wait(lambda: "warming up" in node.reason())
    node.status = Reward.STATUS_OK
    node.until_moving()
    node.stop()


def test_what_was_done_is_recorded(graph: Graph, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    node = PolicyUnderTest(graph, model=model, record_dir=str(folder), success_frames=1, noise_std=0.2).start()
    node.frame = NEAR
    node.enable()
    node.until_moving()
    node.wait(lambda: len(node.actions) > 15)
    node.frame = FAR
    node.wait(lambda: len(node.actions) > 25)
    node.progress = 1.0
    node.wait(lambda: bool(node.episodes))
    node.wait(lambda: node.value("episodes recorded") == "1")
    node.stop()
    store = ReplayStore(folder, read_only=True)
    (episode,) = store.episodes
    assert not store.skipped
    assert episode.notes["end_reason"] == Episode.END_SUCCESS
    assert episode.rows == pytest.approx(len(node.episodes) and node.episodes[0].steps, abs=3)
    assert episode.notes["robot_episode"] == 0
    assert episode.notes["missing_rewards"] <= 2
    rows = np.arange(1, episode.rows)
    batch = store.at(np.zeros_like(rows), rows, nstep=1, gamma=0.99, stack=1)
    assert batch.observation.shape[1:] == (1, 3, 32, 32)
    frames = {name: resize_frame(frame, Preprocess(32)).transpose(2, 0, 1) for name, frame in [("n", NEAR), ("f", FAR)]}
    np.testing.assert_array_equal(batch.observation[0, 0], frames["n"])
    np.testing.assert_array_equal(batch.next_observation[-1, 0], frames["f"])
    published = {tuple(np.float32(action.data)) for action in node.actions}
    assert all(tuple(action) in published for action in batch.action)
    assert len({tuple(action) for action in batch.action}) > 10  # noise
    assert (batch.reward == np.float32(0.25)).sum() >= len(rows) - episode.notes["missing_rewards"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_any_state_ends_it(graph: Graph, model: str, number: int) -> None:
    node = PolicyUnderTest(graph, model=model)
    node.wait(lambda: bool(node.diagnostics))
    start = time.monotonic()
    assert graph.stop("policy_node", number=number) == {"policy_node": 0}, node.log()
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_mid_motion_stops_the_robot_first(graph: Graph, model: str, number: int) -> None:
    node = PolicyUnderTest(graph, model=model).start()
    node.enable()
    node.until_moving()
    assert moves(node.actions[-1])
    start = time.monotonic()
    assert graph.stop("policy_node", number=number) == {"policy_node": 0}, node.log()
    assert time.monotonic() - start < 1.5
    graph.spin(lambda: not moves(node.actions[-1]), 5.0, "the stop")
    assert "Traceback" not in node.log()


def test_no_torch_in_the_process(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model).start()
    node.enable()
    node.until_moving()
    mapped = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped
    node.stop()
