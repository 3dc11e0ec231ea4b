"""policy_node with the real reward_node: what it makes of a camera that pauses and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_harness import make_graph
from policy_harness import PolicyUnderTest, moves
from tiny_bundle import write_tiny_bundle
from tiny_policy import write_seeker

from v2r_msgs.msg import Episode, Reward
from v2r_msgs.srv import SetGoal
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    with make_graph(tmp_path) as graph:
        yield graph


class Pair:
    """Both nodes, and the robot moves.

    Attributes:
        node: policy_node; its harness is the camera only.
        rewards: of reward_node.
    """

    def __init__(self, graph: Graph, folder: Path, **parameters: object) -> None:
        self.graph = graph
        self.rewards: list[Reward] = []
        graph.node.create_subscription(Reward, "/reward_node/reward", self.rewards.append, 100)
        graph.start("v2r_ros.reward_node", {"model": str(write_tiny_bundle(folder / "bundle")), "providers": ["cpu"]})
        for transition in (CONFIGURE, ACTIVATE):
            assert graph.transition("/reward_node", transition), graph.log("reward_node")
        model = str(write_seeker(folder / "policy"))
        given = {"time_limit": 0.0, "reset_reward": ""} | parameters
        self.node = PolicyUnderTest(graph, model=model, reward="/reward_node/reward", **given).start()
        self.node.reward_on = False
        graph.spin(lambda: graph.node.count_subscribers("/image") == 2, 15.0, "both to listen")
        self.node.wait(lambda: bool(self.rewards))
        request = SetGoal.Request(source=SetGoal.Request.FROM_CURRENT_FRAME)
        assert graph.call(SetGoal, "/reward_node/set_goal", request).result == SetGoal.Response.RESULT_SUCCESS
        self.node.wait(lambda: self.rewards[-1].status == Reward.STATUS_OK)
        assert self.node.enable().success
        self.node.until_moving()

    def pause(self, seconds: float) -> None:
        """The camera is silent."""
        self.node.camera_on = False
        self.run(seconds)

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        end = time.monotonic() + seconds
        self.node.wait(lambda: time.monotonic() > end, seconds + 10.0)


def test_the_episode_goes_on_after_a_pause_of_the_camera(graph: Graph, tmp_path: Path) -> None:
    pair = Pair(graph, tmp_path)
    node, before = pair.node, len(pair.rewards)
    pair.pause(1.5)
    stale = [reward for reward in pair.rewards[before:] if reward.status == Reward.STATUS_STALE_IMAGE]
    assert stale  # reward_node has noticed too
    assert not moves(node.actions[-1]) and node.reason()
    node.camera_on = True
    node.until_moving()
    pair.run(1.0)
    assert moves(node.actions[-1])
    assert not node.episodes
    assert node.value("state") == "running"
    node.stop()


def test_a_pause_beyond_fault_timeout_ends_the_episode_for_good(graph: Graph, tmp_path: Path) -> None:
    pair = Pair(graph, tmp_path, fault_timeout=2.0, auto_restart=True)
    node = pair.node
    pair.pause(3.5)
    node.wait(lambda: bool(node.episodes))
    (episode,) = node.episodes
    assert episode.end_reason == Episode.END_FAULT
    assert episode.goal_id.startswith("current_frame")
    node.camera_on = True
    count = len(node.actions)
    pair.run(1.5)
    assert not any(moves(action) for action in node.actions[count:])
    assert len(node.episodes) == 1 and node.value("state") == "disabled"
    node.enable()
    node.until_moving()
    node.stop()
