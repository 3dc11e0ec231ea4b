"""A silent camera: what is said says which goal it is about, also after simulated time has gone back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_harness import PATIENCE, NodeUnderTest, make_graph
from rosgraph_msgs.msg import Clock
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_msgs.msg import Reward

FRAMES = moving_square()
TIMEOUT = 0.5
SIMULATED_TIMEOUT = 1.5
TICK_S = 0.02


class Simulation:
    """A clock that this process sets."""

    def __init__(self, node: NodeUnderTest) -> None:
        self._node = node
        self._clock = node.graph.node.create_publisher(Clock, "/clock", 10)
        self._origin = self._next = 0.0
        node.wait(lambda: self._clock.get_subscription_count() > 0)

    def begin_at(self, seconds: float) -> None:
        self._origin = time.monotonic() - seconds

    @property
    def now(self) -> float:
        return time.monotonic() - self._origin

    def run_until(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Lets time pass until it holds."""

        def ticked() -> bool:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + TICK_S
                message = Clock()
                message.clock.sec, message.clock.nanosec = int(self.now), int(self.now % 1 * 1e9)
                self._clock.publish(message)
            return condition()

        self._node.wait(ticked, timeout)

    def show(self) -> None:
        """Sends an image once the clock has been heard, but before the node looks after its camera again."""
        soon = time.monotonic() + 0.1
        self.run_until(lambda: time.monotonic() > soon)
        self._node.send(FRAMES[0], stamp=self.now)
        self.wait_for(Reward.STATUS_NO_GOAL)

    def wait_for(self, status: int, timeout: float = PATIENCE) -> None:
        seen = len(self._node.rewards)
        self.run_until(lambda: any(r.status == status for r in self._node.rewards[seen:]), timeout)


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """An active node without a goal that lives in simulated time."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with make_graph(tmp_path) as graph:
        parameters = {
            "image_timeout": SIMULATED_TIMEOUT,
            "use_sim_time": True,
            "max_stamp_future": 1.0,
            "providers": ["cpu"],
        }
        under_test = NodeUnderTest(graph, model=str(bundle), **parameters)
        assert under_test.configure(), under_test.log()
        assert under_test.activate(), under_test.log()
        yield under_test


def test_a_camera_is_missed_also_after_simulated_time_has_gone_back(simulated: NodeUnderTest) -> None:
    """The camera goes on at once, so that its newest image is no sign that time has gone back."""
    simulation = Simulation(simulated)
    for start in (1000.0, 50.0):
        simulation.begin_at(start)
        simulation.show()
        simulation.wait_for(Reward.STATUS_STALE_IMAGE, 4 * SIMULATED_TIMEOUT)


def test_a_stale_image_is_about_the_goal_in_force(tmp_path: Path, clip: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with make_graph(tmp_path) as graph:
        parameters = {"goals_dir": str(tmp_path), "goal": clip.name, "image_timeout": TIMEOUT, "providers": ["cpu"]}
        node = NodeUnderTest(graph, model=str(bundle), **parameters)
        assert node.configure() and node.activate(), node.log()

        def stale() -> Reward:
            seen = len(node.rewards)
            node.wait(lambda: any(r.status == Reward.STATUS_STALE_IMAGE for r in node.rewards[seen:]))
            return next(r for r in node.rewards[seen:] if r.status == Reward.STATUS_STALE_IMAGE)

        before_any = stale()
        answer = node.answer(FRAMES[0])
        for found in (before_any, stale()):
            assert (found.goal_id, found.subgoal_count) == (answer.goal_id, answer.subgoal_count)
            assert found.subgoal_count == 1
            assert math.isnan(found.reward) and math.isnan(found.progress) and math.isnan(found.inference_ms)
        assert stale().frame_count == answer.frame_count == 1
