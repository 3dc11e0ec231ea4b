"""sim_node as a process: the environment behind it is the one that `make_env` gives, step by step and in real time."""

from __future__ import annotations

import importlib.util
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from node_harness import make_graph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger
from tiny_policy import GAIN, MARK
from toy_blob import SPEED, START

from v2r_core.rl.envs import make_env
from v2r_msgs.msg import Reward
from v2r_ros import qos
from v2r_ros.episodes import nanoseconds
from v2r_ros.graph import Graph
from v2r_ros.images import message_to_rgb

ROOT = Path(__file__).parents[1]
ENV, SIZE, DT_NS = "gym:toy_blob:Blob-v0", 48, 50_000_000
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 2)).astype(np.float32)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with make_graph(tmp_path) as graph:
        yield graph


class SimUnderTest:
    """A sim_node process, an actuator and ears in this process."""

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.graph = graph
        self.images: list[Image] = []
        self.infos: list[CameraInfo] = []
        self.success: list[bool] = []
        self.clocks: list[int] = []
        node = graph.node
        node.create_subscription(Image, "/camera/image", self.images.append, 100)
        node.create_subscription(CameraInfo, "/camera/camera_info", self.infos.append, 100)
        node.create_subscription(Bool, "/sim_node/success", lambda message: self.success.append(message.data), 100)
        node.create_subscription(Clock, "/clock", lambda message: self.clocks.append(nanoseconds(message.clock)), 100)
        self.actuator = node.create_publisher(Float64MultiArray, "/action", qos.command())
        self.scorer = node.create_publisher(Reward, "/reward", qos.reward_publisher(1.0))
        self.process = graph.start("v2r_ros.sim_node", {"env": ENV, "size": SIZE} | parameters)

    def start(self) -> SimUnderTest:
        """Waits until it hears and is heard."""
        self.wait(lambda: self.actuator.get_subscription_count() > 0, 30.0)
        self.wait(lambda: bool(self.images and self.infos and self.success), 30.0)
        return self

    def wait(self, condition, timeout: float = 15.0) -> None:
        self.graph.spin(condition, timeout, "a condition")

    def linger(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def act(self, action: np.ndarray | list) -> None:
        self.actuator.publish(Float64MultiArray(data=[float(number) for number in action]))

    def reward(self, image: Image, status: int = Reward.STATUS_OK) -> None:
        self.scorer.publish(Reward(header=image.header, status=status))

    def reset(self) -> Trigger.Response:
        return self.graph.call(Trigger, "/sim_node/reset", Trigger.Request())

    def step(self, action: np.ndarray) -> np.ndarray:
        """In lockstep: the next frame that is not the last one again."""
        old, before = len(self.images), self.frame()
        self.act(action)
        self.wait(lambda: len(self.images) > old and not np.array_equal(self.frame(), before))
        return self.frame()

    def frame(self) -> np.ndarray:
        return message_to_rgb(self.images[-1], 1 << 20)

    def log(self) -> str:
        return self.graph.log("sim_node")

    def stop(self, number: int = signal.SIGINT) -> None:
        assert self.graph.stop("sim_node", number=number) == {"sim_node": 0}, self.log()


def direct(seed: int, actions: np.ndarray) -> list[np.ndarray]:
    env = make_env(ENV, size=SIZE)
    frames = [env.reset(seed=seed)[0]] + [env.step(action)[0] for action in actions]
    env.close()
    return frames


def test_in_lockstep_it_is_the_environment_step_by_step(graph: Graph) -> None:
    sim = SimUnderTest(graph, lockstep=True, speed=0.0, seed=7, action_timeout=30.0).start()
    found = [sim.frame()] + [sim.step(action) for action in ACTIONS]
    np.testing.assert_array_equal(found, direct(7, ACTIONS))
    count = len(sim.images)
    sim.linger(0.3)
    assert len(sim.images) == count  # it waits for the next action
    stamps = [nanoseconds(image.header.stamp) for image in sim.images]
    assert set(np.diff(stamps)) == {DT_NS}
    assert stamps[-1] in sim.clocks
    assert sim.images[-1].header == sim.infos[-1].header
    assert sim.images[-1].header.frame_id == "camera_optical_frame"
    assert (sim.infos[-1].width, sim.infos[-1].height, sim.infos[-1].k[0]) == (SIZE, SIZE, 0)
    response = sim.reset()
    assert response.success and response.message.startswith("seed ")
    seed = int(response.message.split()[1])
    assert seed >= 8
    first = direct(seed, ACTIONS[:0])[0]
    sim.wait(lambda: np.array_equal(sim.frame(), first))
    sim.stop()


class Slow:
    """Answers each new image with an action at once, and with a reward a while later, if at all."""

    def __init__(self, sim: SimUnderTest, after: float, *, rewards: bool = True) -> None:
        self.sim, self.rewards, self._after = sim, rewards, after
        self.acted, self.due = len(sim.images), [(0.0, sim.images[-1])]
        self.early: list[int] = []
        """Images that came while an earlier one had no reward yet."""

    def spin(self, until) -> None:
        def turn() -> bool:
            for image in self.sim.images[self.acted :]:
                if self.due and self.rewards:
                    self.early.append(self.acted)
                self.acted += 1
                self.sim.act(ACTIONS[0])
                self.due.append((time.monotonic() + self._after, image))
            while self.due and (time.monotonic() >= self.due[0][0] or not self.rewards):
                _, image = self.due.pop(0)
                if self.rewards:
                    self.sim.reward(image)
            return until()

        self.sim.wait(turn)


@pytest.fixture
def locked(graph: Graph) -> SimUnderTest:
    sim = SimUnderTest(graph, lockstep=True, speed=0.0, action_timeout=1.5).start()
    sim.wait(lambda: sim.scorer.get_subscription_count() > 0)
    return sim


def test_in_lockstep_an_image_waits_for_the_reward_of_the_last(locked: SimUnderTest) -> None:
    sim, slow = locked, Slow(locked, 0.12)
    slow.spin(lambda: not slow.due)
    sim.linger(0.1)
    slow = Slow(sim, 0.12)
    seen, start = len(sim.images), time.monotonic()
    slow.spin(lambda: len(sim.images) >= seen + 10)
    assert time.monotonic() - start > 9 * 0.12
    assert not slow.early
    # The old image once more, as while the camera is silent, is no answer; nor is the reward of an older image.
    slow.spin(lambda: not slow.due)
    sim.wait(lambda: len(sim.images) > slow.acted)
    count = len(sim.images)
    sim.act(ACTIONS[0])
    sim.reward(sim.images[-1], Reward.STATUS_STALE_IMAGE)
    sim.reward(sim.images[-2])
    sim.linger(0.4)
    assert len(sim.images) == count
    sim.reward(sim.images[-1], Reward.STATUS_WARMING_UP)
    sim.wait(lambda: len(sim.images) == count + 1)
    sim.stop()


def test_in_lockstep_a_reset_waits_for_the_reward_of_the_last_image(locked: SimUnderTest) -> None:
    sim, slow = locked, Slow(locked, 0.0)
    slow.spin(lambda: len(sim.images) >= slow.acted > 5 and not slow.due)
    sim.wait(lambda: len(sim.images) > slow.acted)
    last, moved = sim.images[-1], sim.frame()
    client = sim.graph.node.create_client(Trigger, "/sim_node/reset")
    sim.wait(client.service_is_ready)
    start, future = time.monotonic(), client.call_async(Trigger.Request())
    sim.linger(0.5)
    assert not future.done() and sim.images[-1] is last
    sim.reward(last)
    sim.wait(lambda: sim.images[-1] is not last and not np.array_equal(sim.frame(), moved))
    assert time.monotonic() - start < 1.5
    sim.stop()


def test_in_lockstep_a_reward_that_stops_is_waited_for_once(locked: SimUnderTest) -> None:
    sim, slow = locked, Slow(locked, 0.0)
    seen = len(sim.images)
    slow.spin(lambda: len(sim.images) > seen + 5)
    slow.rewards = False
    seen, start = len(sim.images), time.monotonic()
    slow.spin(lambda: len(sim.images) > seen + 20)
    assert 1.2 < time.monotonic() - start < 2.9
    sim.wait(lambda: "no reward for an image within 1.5 s" in sim.log())
    slow.rewards = True  # and it waits again
    seen = len(sim.images)
    slow.spin(lambda: len(sim.images) > seen + 3)
    slow.spin(lambda: not slow.due)
    sim.wait(lambda: len(sim.images) > slow.acted)
    count = len(sim.images)
    sim.act(ACTIONS[0])
    sim.linger(0.4)
    assert len(sim.images) == count
    sim.stop()


def test_out_of_lockstep_no_reward_is_waited_for(graph: Graph) -> None:
    sim = SimUnderTest(graph).start()
    assert sim.scorer.get_subscription_count() == 0
    sim.stop()


def test_after_a_reset_it_stands_still_until_the_first_action(graph: Graph) -> None:
    sim = SimUnderTest(graph, seed=3).start()
    count = len(sim.images)
    sim.wait(lambda: len(sim.images) >= count + 10)  # the camera goes on
    assert all(image.data == sim.images[0].data for image in sim.images)
    sim.act([1, -1])
    sim.wait(lambda: sim.images[-1].data != sim.images[0].data)
    sim.stop()


def test_in_real_time_and_without_new_actions_it_stops(graph: Graph) -> None:
    sim = SimUnderTest(graph, action_timeout=0.3).start()
    sim.act([0.5, -0.5])
    seen, start = len(sim.images), time.monotonic()
    sim.wait(lambda: len(sim.images) >= seen + 20)
    assert time.monotonic() - start == pytest.approx(1.0, abs=0.4)
    assert sim.images[-1].data == sim.images[-8].data  # zero has taken the action's place
    assert sim.images[-1].data != sim.images[seen - 1].data
    between = [clock for clock in sim.clocks if clock % DT_NS]
    assert between and sim.clocks == sorted(sim.clocks)  # finer than the frames, and never back
    sim.stop(signal.SIGTERM)


def test_faster_than_real_time(graph: Graph) -> None:
    sim = SimUnderTest(graph, speed=4.0).start()
    seen, start = len(sim.images), time.monotonic()
    sim.wait(lambda: len(sim.images) >= seen + 40)
    assert time.monotonic() - start < 1.5  # of two simulated seconds
    sim.stop()


def test_actions_that_are_none_are_ignored(graph: Graph) -> None:
    sim = SimUnderTest(graph).start()
    for action in ([1.0], [1.0, 0.0, 0.0], [float("nan"), 0.0], []):
        sim.act(action)
        sim.linger(0.1)
    sim.wait(lambda: "is not 2 finite numbers" in sim.log())
    assert all(image.data == sim.images[0].data for image in sim.images)
    sim.act([5.0, 0.0])  # clipped
    sim.wait(lambda: sim.images[-1].data != sim.images[0].data)
    sim.stop()


def test_success_and_the_end_of_an_episode(graph: Graph) -> None:
    sim = SimUnderTest(graph, lockstep=True, speed=0.0, seed=1, horizon=30, action_timeout=5.0).start()
    sim.step(np.ones(2))
    sim.linger(0.3)  # what it said while it stood still is no answer to an action
    position = np.asarray(START) + SPEED
    for _ in range(40):  # more than the horizon: those beyond it move nothing
        way = np.clip(GAIN * (np.asarray(MARK) - position), -1, 1)
        position = position + SPEED * way
        seen = len(sim.success)
        sim.act(way)
        sim.wait(lambda seen=seen: len(sim.success) > seen)
    sim.wait(lambda: sim.success[-1])
    assert not sim.success[0]
    over = sim.images[-1].data
    sim.act([-1, 1])
    sim.linger(0.3)
    assert sim.images[-1].data == over  # it stands until the next reset
    assert sim.reset().success
    sim.wait(lambda: not sim.success[-1])
    sim.stop()


def test_an_environment_that_raises(graph: Graph) -> None:
    sim = SimUnderTest(graph, env="gym:toy_blob:HotBlob-v0", lockstep=True, speed=0.0, action_timeout=30.0).start()
    for action in ACTIONS[:3]:
        sim.step(action)
    sim.act(ACTIONS[3])
    sim.wait(lambda: "the motor is hot" in sim.log())
    count = len(sim.images)
    sim.act(ACTIONS[4])
    sim.linger(0.5)
    assert len(sim.images) == count  # no camera, so a policy stops
    assert sim.process.poll() is None
    assert sim.reset().success
    sim.wait(lambda: len(sim.images) > count)
    for action in ACTIONS[:6]:
        sim.step(action)
    sim.stop()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control not installed")
def test_a_known_camera_is_calibrated(graph: Graph) -> None:
    sim = SimUnderTest(graph, env="dm_control:cartpole-balance", size=64).start()
    info = sim.infos[-1]
    focal = 32 / math.tan(math.radians(45 / 2))  # the model leaves it at MuJoCo's 45 degrees
    assert info.k == pytest.approx([focal, 0, 31.5, 0, focal, 31.5, 0, 0, 1])
    assert info.p == pytest.approx([focal, 0, 31.5, 0, 0, focal, 31.5, 0, 0, 0, 1, 0])
    assert info.r == pytest.approx([1, 0, 0, 0, 1, 0, 0, 0, 1])
    assert (info.distortion_model, list(info.d)) == ("plumb_bob", [0] * 5)
    sim.stop()


def test_wall_clock_stamps(graph: Graph) -> None:
    sim = SimUnderTest(graph, simulated_time=False).start()
    assert abs(nanoseconds(sim.images[-1].header.stamp) * 1e-9 - time.time()) < 2
    assert graph.node.count_publishers("/clock") == 0
    sim.stop()


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"env": "nothing:at-all"}, "nothing:at-all"),
        ({"env": "gym:NotThere-v0"}, "NotThere"),
        ({"speed": 0.0}, "lockstep"),
        ({"speed": 0.0, "lockstep": True, "simulated_time": False}, "simulated_time"),
        ({"size": 4}, "size"),
    ],
    ids=["kind", "id", "speed", "stamps", "size"],
)
def test_what_cannot_start_says_why(graph: Graph, parameters: dict, word: str) -> None:
    process = graph.start("v2r_ros.sim_node", {"env": ENV} | parameters)
    assert process.wait(timeout=30) == 1
    assert word in graph.log("sim_node")
    assert "Traceback" not in graph.log("sim_node")
