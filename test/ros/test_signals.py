"""SIGINT and SIGTERM, in any state: exit code 0 within a second, and a bag that can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from node_harness import NodeUnderTest, make_graph
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_ros.bags import read_rewards
from v2r_ros.environment import node_environment

LIMIT_S = 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("state", ["unconfigured", "inactive", "active"])
def test_reward_node_ends_well(tmp_path: Path, clip: Path, number: int, state: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(graph, model=str(bundle), goals_dir=str(tmp_path), goal=clip.name)
        node.wait(lambda: bool(node.diagnostics), what="the node to run")
        if state != "unconfigured":
            assert node.configure()
        if state == "active":
            assert node.activate()
            node.answer(moving_square()[0])
        start = time.monotonic()
        assert graph.stop("reward_node", number=number) == {"reward_node": 0}, node.log()
        assert time.monotonic() - start < LIMIT_S
        assert "Traceback" not in node.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_recorder_leaves_a_readable_bag(tmp_path: Path, clip: Path, number: int) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    topics = ["/image", "/reward_node/reward", "/reward_node/info", "/diagnostics"]
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(graph, model=str(bundle), goals_dir=str(tmp_path), goal=clip.name)
        graph.start("v2r_ros.recorder", {"bag": str(tmp_path / "bag"), "topics": topics})
        assert node.configure() and node.activate()
        node.wait(lambda: node.camera.get_subscription_count() >= 2, what="node and recorder")
        node.wait(lambda: "reward_node/reward" in graph.log("recorder"), what="the recorder to hear the rewards")
        for frame in moving_square()[:8]:
            node.answer(frame)
        start = time.monotonic()
        assert graph.stop("recorder", number=number) == {"recorder": 0}, graph.log("recorder")
        assert time.monotonic() - start < LIMIT_S
    rewards = read_rewards(tmp_path / "bag")
    assert len(rewards) >= 5
    assert rewards.curve.subgoal_count.max() == 1


def test_recorder_does_not_write_over_a_recording(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with make_graph(tmp_path) as graph:
        process = graph.start("v2r_ros.recorder", {"bag": str(tmp_path / "bag"), "topics": ["/image"]})
        assert process.wait(timeout=20) == 1
        said = graph.log("recorder")
    assert f"{tmp_path / 'bag'} exists" in said and "give another path" in said
    assert "Traceback" not in said


def test_video_node_ends_by_itself_and_on_request(tmp_path: Path, clip: Path) -> None:
    with make_graph(tmp_path) as graph:
        short = graph.start("v2r_ros.video_node", {"video": str(clip), "rate": 200.0}, "short")
        assert short.wait(timeout=20) == 0, graph.log("short")
        assert "played 40 frames" in graph.log("short")
        graph.start("v2r_ros.video_node", {"video": str(clip), "loop": True}, "endless")
        graph.spin(lambda: graph.node.count_publishers("/image") > 0, 10.0, "video_node")
        start = time.monotonic()
        assert graph.stop("endless", number=signal.SIGTERM) == {"endless": 0}, graph.log("endless")
        assert time.monotonic() - start < LIMIT_S


def test_video_node_says_what_is_wrong_with_its_video(tmp_path: Path) -> None:
    with make_graph(tmp_path) as graph:
        process = graph.start("v2r_ros.video_node", {"video": str(tmp_path / "nothing.mp4")})
        assert process.wait(timeout=20) == 1
        assert "nothing.mp4" in graph.log("video_node")
        assert "Traceback" not in graph.log("video_node")


SILENT = """
import threading

import rclpy
from rclpy.node import Node
from std_msgs.msg import Bool

from v2r_ros.running import run


class Silent(Node):
    def __init__(self):
        super().__init__("silent")
        self.create_subscription(Bool, "nothing", print, 10)
        # A signal's thread takes the context away like this, and nothing wakes the executor afterwards.
        threading.Timer(0.5, rclpy.get_default_context().handle.shutdown).start()

    def close(self):
        print("closed")


raise SystemExit(run(Silent))
"""


def test_a_node_ends_though_nothing_wakes_its_executor(tmp_path: Path) -> None:
    environment = {**os.environ, **node_environment(), "ROS_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SILENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
