"""The launch files, run for real where launch and launch_ros are installed (they are not among the wheels)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from node_harness import make_graph
from tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).parents[2]
RUNNER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
file, *pairs = sys.argv[1:]
arguments = [tuple(pair.split(":=", 1)) for pair in pairs]
service = LaunchService()
source = PythonLaunchDescriptionSource(file)
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


def _why_not() -> str:
    for name in ("launch", "launch_ros"):
        if getattr(importlib.util.find_spec(f"{name}.actions") if _has(name) else None, "origin", None) is None:
            return f"{name} is not installed: it is on a robot, not among the wheels"
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if (Path(prefix) / "lib" / "v2r_ros" / "reward_node").is_file():
            return ""
    return "v2r_ros is not built with colcon here, so launch cannot find its executables"


def _has(name: str) -> bool:
    # The repository's own folder launch/ is found too, as a package without a file.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")


def launch(name: str, domain: int, logs: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_LOG_DIR": str(logs)} | variables
    command = [sys.executable, "-c", RUNNER, str(ROOT / "launch" / name), *arguments]
    with (logs / "launch.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def state_of(graph, node: str) -> str:
    from lifecycle_msgs.srv import GetState

    return graph.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label


def test_reward_launch_brings_the_node_to_active(tmp_path: Path, clip: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    arguments = [
        f"model:={bundle}",
        f"goals_dir:={tmp_path}",
        f"goal:={clip.name}",
        "namespace:=arm",
        "image:=/cam/rgb",
    ]
    with make_graph(tmp_path) as graph:
        process = launch("reward.launch.py", graph.domain, tmp_path / "ros", *arguments)
        try:
            graph.spin(lambda: graph.node.count_publishers("/arm/reward_node/reward") > 0, 30.0, "the node")
            graph.spin(lambda: state_of(graph, "/arm/reward_node") == "active", 30.0, "the node to be active")
            graph.spin(lambda: graph.node.count_subscribers("/cam/rgb") == 1, 10.0, "the camera subscription")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, (tmp_path / "ros" / "launch.log").read_text()


def test_autostart_off_and_compressed(tmp_path: Path) -> None:
    with make_graph(tmp_path) as graph:
        arguments = ["autostart:=false", "compressed:=true", "image:=/cam/rgb"]
        process = launch("reward.launch.py", graph.domain, tmp_path / "ros", *arguments)
        try:
            graph.spin(lambda: graph.node.count_publishers("/reward_node/reward") > 0, 30.0, "the node")
            assert state_of(graph, "/reward_node") == "unconfigured"
            from v2r_ros.graph import ACTIVATE, CONFIGURE

            assert graph.transition("/reward_node", CONFIGURE)
            assert graph.transition("/reward_node", ACTIVATE)
            graph.spin(lambda: graph.node.count_subscribers("/cam/rgb/compressed") == 1, 10.0, "the subscription")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, (tmp_path / "ros" / "launch.log").read_text()


def test_params_file_reaches_the_node(tmp_path: Path) -> None:
    from rcl_interfaces.srv import GetParameters

    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "config" / "reward.yaml").read_text().replace("threads: 1", "threads: 2"))
    with make_graph(tmp_path) as graph:
        process = launch("reward.launch.py", graph.domain, tmp_path / "ros", f"params_file:={file}", "autostart:=false")
        try:
            graph.spin(lambda: graph.node.count_publishers("/reward_node/reward") > 0, 30.0, "the node")
            request = GetParameters.Request(names=["threads"])
            answer = graph.call(GetParameters, "/reward_node/get_parameters", request)
            assert answer.values[0].integer_value == 2
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, (tmp_path / "ros" / "launch.log").read_text()


def test_demo_launch_plays_to_the_end(tmp_path: Path, clip: Path) -> None:
    from v2r_msgs.msg import Reward

    rewards: list[Reward] = []
    with make_graph(tmp_path) as graph:
        graph.node.create_subscription(Reward, "/reward_node/reward", rewards.append, 100)
        process = launch("demo.launch.py", graph.domain, tmp_path / "ros")
        try:
            graph.spin(lambda: process.poll() is not None, 90.0, "the demo to end")
        finally:
            process.send_signal(signal.SIGINT)
        log = (tmp_path / "ros" / "launch.log").read_text()
        assert process.wait(20) == 0, log
    assert sum(reward.status == Reward.STATUS_OK for reward in rewards) > 100, log


def test_record_asks_rosbag2_for_the_right_topics_and_qos(tmp_path: Path) -> None:
    import yaml

    told = tmp_path / "told"
    fake = tmp_path / "bin" / "ros2"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}.part && mv {told}.part {told}\nexec sleep 60\n')
    fake.chmod(0o755)
    with make_graph(tmp_path) as graph:
        arguments = [
            "autostart:=false",
            "record:=true",
            "namespace:=arm",
            "image:=camera/rgb",
            f"bag:={tmp_path / 'bag'}",
        ]
        path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
        process = launch("reward.launch.py", graph.domain, tmp_path / "ros", *arguments, PATH=path)
        try:
            graph.spin(told.exists, 30.0, "the recorder to be started")
        finally:
            process.send_signal(signal.SIGINT)
        process.wait(30)
    words = told.read_text().splitlines()
    assert words[:4] == ["bag", "record", "-o", str(tmp_path / "bag")]
    topics = ["/arm/camera/rgb", "/arm/reward_node/reward", "/arm/reward_node/info", "/diagnostics"]
    assert words[-4:] == topics
    overrides = yaml.safe_load(Path(words[words.index("--qos-profile-overrides-path") + 1]).read_text())
    assert overrides["/arm/reward_node/info"]["durability"] == "transient_local"
    assert set(overrides) <= set(topics)
