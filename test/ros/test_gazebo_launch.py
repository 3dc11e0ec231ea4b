"""gazebo.launch.py, run for real where launch is installed, with a stand-in for Gazebo; see test_launch.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from node_harness import make_graph
from PIL import Image as Picture
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from test_launch import RUNNER, WHY_NOT
from tiny_bundle import write_tiny_bundle
from tiny_policy import MARK, blob, write_seeker

from v2r_msgs.msg import Episode, Reward
from v2r_ros import qos
from v2r_ros.graph import Graph
from v2r_ros.images import rgb_to_message

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
ROOT = Path(__file__).parents[2]
PERIOD = 1 / 30
# It stands for ros_gz_sim's: the same arguments, and a shell that is handed gz_args as they are.
GZ_SIM = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("gz_args"),
        DeclareLaunchArgument("on_exit_shutdown"),
        ExecuteProcess(cmd=["gz sim", LaunchConfiguration("gz_args")], shell=True, output="screen"),
    ])
"""
TELLS = (
    '#!/bin/sh\nprintf "%s\\n" "$@" "" >> {told}\nfor word; do [ -f "$word" ] && cat "$word" >> {told}.files; done\n'
)


class StandIn:
    """Gazebo, its packages and programs, as far as the launch file meets them.

    Attributes:
        prefix: of the packages.
        programs: folder of `gz` and `ros2`.
    """

    def __init__(self, folder: Path) -> None:
        self.prefix, self.programs, self._folder = folder / "prefix", folder / "bin", folder
        self._program(self.programs / "ros2", "exec sleep 120")
        self._program(self.programs / "gz", 'case $1 in sim) exec sleep 120;; *) echo "data: true";; esac')
        for package, program in (
            ("ros_gz_sim", ""),
            ("ros_gz_bridge", "parameter_bridge"),
            ("ros_gz_image", "image_bridge"),
        ):
            index = self.prefix / "share" / "ament_index" / "resource_index" / "packages"
            index.mkdir(parents=True, exist_ok=True)
            (index / package).touch()
            if program:
                self._program(self.prefix / "lib" / package / program, "exec sleep 120")
        file = self.prefix / "share" / "ros_gz_sim" / "launch" / "gz_sim.launch.py"
        file.parent.mkdir(parents=True)
        file.write_text(GZ_SIM)

    def _program(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TELLS.format(told=self._folder / path.name) + body + "\n")
        path.chmod(0o755)

    def paths(self) -> dict[str, str]:
        """Variables with which it is found first."""
        first = {"PATH": self.programs, "AMENT_PREFIX_PATH": self.prefix}
        return {name: f"{folder}{os.pathsep}{os.environ[name]}" for name, folder in first.items()}

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of every call of a program."""
        told = self._folder / program
        return [call.split("\n") for call in told.read_text().strip().split("\n\n")] if told.exists() else []

    def parameters(self, program: str) -> dict:
        """What a node was given in files of parameters."""
        text = (self._folder / f"{program}.files").read_text()
        found: dict = {}
        for part in text.split("/**:\n"):
            found |= (yaml.safe_load(part) or {}).get("ros__parameters", {})
        return found


class Camera:
    """Publishes /clock and images of the blob far from its mark, at 30 Hz of simulated time, as Gazebo would.

    Attributes:
        resets: how often the world was reset, which puts the time back to 0.
    """

    def __init__(self, graph: Graph, gazebo: StandIn) -> None:
        self._gazebo, self.resets = gazebo, 0
        self._clock = graph.node.create_publisher(Clock, "/clock", 10)
        self._images = graph.node.create_publisher(Image, "/camera/image", qos.image_publisher())
        self._message = rgb_to_message(blob(-0.6, 0.5))
        self._count, self._due = 300, 0.0

    @property
    def seconds(self) -> float:
        """The simulated time."""
        return self._count * PERIOD

    def tick(self) -> None:
        """Publishes when it is time."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = max(self._due + PERIOD, now)
        if (resets := sum("/world/tabletop/control" in call for call in self._gazebo.calls("gz"))) > self.resets:
            self.resets, self._count = resets, 0
        self._count += 1
        stamp = Time(seconds=self._count * PERIOD).to_msg()
        self._clock.publish(Clock(clock=stamp))
        self._message.header.stamp = stamp
        self._images.publish(self._message)


@contextlib.contextmanager
def launched(graph: Graph, gazebo: StandIn, logs: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The launch file with all its processes in one group, which at the end is told what Ctrl-C in a terminal tells."""
    logs.mkdir()
    environment = os.environ | {"ROS_DOMAIN_ID": str(graph.domain), "ROS_LOG_DIR": str(logs)} | gazebo.paths()
    command = [sys.executable, "-c", RUNNER, str(ROOT / "launch" / "gazebo.launch.py"), *arguments]
    with (logs / "launch.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
        os.killpg(process.pid, signal.SIGINT)
        graph.spin(lambda: process.poll() is not None, 30.0, "the end")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_the_launch_file_brings_the_loop_up(tmp_path: Path) -> None:
    from trajectory_msgs.msg import JointTrajectory

    gazebo = StandIn(tmp_path / "gazebo")
    goal = tmp_path / "goal.png"
    Picture.fromarray(blob(*MARK)).save(goal)
    arguments = [
        f"policy:={write_seeker(tmp_path / 'policy')}",
        f"model:={write_tiny_bundle(tmp_path / 'bundle')}",
        "reward:=pixel",
        f"goals_dir:={tmp_path}",
        "goal:=goal.png",
        "headless:=true",
        "record:=true",
        f"bag:={tmp_path / 'bag'}",
    ]
    actions: list[JointTrajectory] = []
    rewards: list[Reward] = []
    episodes: list[Episode] = []
    with make_graph(tmp_path) as graph:
        graph.node.create_subscription(JointTrajectory, "/policy_node/action", actions.append, 10)
        graph.node.create_subscription(Reward, "/reward_node/reward", rewards.append, 10)
        graph.node.create_subscription(Episode, "/policy_node/episode", episodes.append, 10)
        camera = Camera(graph, gazebo)
        with launched(graph, gazebo, tmp_path / "ros", *arguments) as process:

            def moving() -> bool:
                camera.tick()
                scored = any(reward.status == Reward.STATUS_OK for reward in rewards)
                driven = any(any(action.points[0].velocities) for action in actions)
                return (scored and driven) or process.poll() is not None

            graph.spin(moving, 60.0, "a motion of the pusher")
            graph.spin(lambda: camera.tick() or camera.seconds > 2, 10.0, "time that can jump back")
            assert graph.call(Trigger, "/policy_node/end_episode", Trigger.Request()).success
            graph.spin(lambda: camera.tick() or camera.resets == 2, 20.0, "the reset before the next episode")
            rewards.clear()
            actions.clear()
            graph.spin(moving, 20.0, "a motion after the time has jumped back")
        log = (tmp_path / "ros" / "launch.log").read_text()
    assert process.returncode == 0, log
    assert [episode.end_reason for episode in episodes] == [Episode.END_REQUESTED] * 2, log
    assert episodes[0].steps > 0 and episodes[1].steps > 0
    assert list(actions[-1].joint_names) == ["pusher_x", "pusher_y"]
    assert not any(actions[-1].points[0].velocities)  # it was stopped before the node ended

    calls = gazebo.calls("gz")
    world = str(ROOT / "worlds" / "tabletop.sdf")
    assert ["sim", "-r", "-s", "--headless-rendering", world] in calls
    services = [call[2] for call in calls if call[0] == "service"]
    assert services == ["/world/tabletop/control", "/world/tabletop/set_pose"] * 2
    assert gazebo.parameters("parameter_bridge") == {
        "config_file": str(ROOT / "config" / "gz_bridge.yaml"),
        "use_sim_time": True,
    }
    assert gazebo.calls("image_bridge")[0][0] == "/camera/image"
    assert gazebo.parameters("image_bridge") == {"qos": "sensor_data", "use_sim_time": True}
    (recorded,) = gazebo.calls("ros2")
    assert recorded[:4] == ["bag", "record", "-o", str(tmp_path / "bag")]
    assert {"/clock", "/camera/image", "/policy_node/action", "--use-sim-time"} <= set(recorded)


def test_with_a_window_and_without_a_recording(tmp_path: Path) -> None:
    gazebo = StandIn(tmp_path / "gazebo")
    with make_graph(tmp_path) as graph, launched(graph, gazebo, tmp_path / "ros", "autostart:=false") as process:
        graph.spin(lambda: graph.node.count_publishers("/policy_node/episode") > 0, 30.0, "policy_node")
        graph.spin(lambda: bool(gazebo.calls("gz") and gazebo.calls("image_bridge")), 30.0, "Gazebo and the bridge")
    assert process.returncode == 0, (tmp_path / "ros" / "launch.log").read_text()
    assert gazebo.calls("gz") == [["sim", "-r", str(ROOT / "worlds" / "tabletop.sdf")]]
    assert not gazebo.calls("ros2")
