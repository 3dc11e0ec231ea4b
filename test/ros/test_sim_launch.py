"""sim.launch.py and policy.launch.py, run for real where launch is installed; see test_launch.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from node_harness import make_graph
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters
from test_closed_loop import DEMONSTRATION, ENV, RATE, roll_out
from test_launch import WHY_NOT, launch, state_of
from tiny_bundle import write_tiny_bundle
from tiny_policy import write_seeker

from v2r_core.video.writing import write_video
from v2r_msgs.msg import Episode
from v2r_ros.graph import Graph

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
FOLDER = Path(__file__).parents[1]


def test_sim_launch_closes_the_loop(tmp_path: Path) -> None:
    model = write_seeker(tmp_path / "policy", rate=RATE)
    write_video(tmp_path / "demonstration.mp4", roll_out(model, 1000, DEMONSTRATION)[0], RATE)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    file = tmp_path / "mine.yaml"
    file.write_text("/**/policy_node:\n  ros__parameters:\n    success_progress: 0.9\n    providers: [cpu]\n")
    arguments = [
        f"policy:={model}",
        f"model:={bundle}",
        f"goals_dir:={tmp_path}",
        "reward:=pixel",
        "goal:=demonstration.mp4",
        f"env:={ENV}",
        f"policy_params:={file}",
        f"record_dir:={tmp_path / 'data'}",
    ]
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    episodes: list[Episode] = []
    with make_graph(tmp_path) as graph:
        graph.node.create_subscription(Episode, "/policy_node/episode", episodes.append, 10)
        process = launch("sim.launch.py", graph.domain, tmp_path / "ros", *arguments, PYTHONPATH=path)
        try:
            graph.spin(lambda: len(episodes) >= 2, 90.0, "two episodes")
        finally:
            process.send_signal(signal.SIGINT)
        log = (tmp_path / "ros" / "launch.log").read_text()
        assert process.wait(20) == 0, log
    assert {episode.end_reason for episode in episodes} == {Episode.END_SUCCESS}, log


def test_policy_launch_remaps_and_waits_to_be_enabled(tmp_path: Path) -> None:
    model = write_seeker(tmp_path / "policy")
    arguments = [f"model:={model}", "namespace:=arm", "image:=/cam/rgb", "action:=/arm/command", "reward:=/the/reward"]
    with make_graph(tmp_path) as graph:
        process = launch("policy.launch.py", graph.domain, tmp_path / "ros", *arguments)
        try:
            graph.spin(lambda: graph.node.count_subscribers("/cam/rgb") == 1, 30.0, "the node to be active")
            assert state_of(graph, "/arm/policy_node") == "active"
            assert graph.node.count_publishers("/arm/command") == 1
            assert graph.node.count_subscribers("/the/reward") == 1
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, (tmp_path / "ros" / "launch.log").read_text()


def test_files_count_where_no_argument_is_given(tmp_path: Path) -> None:
    """Start-up arguments win over the files when they are given, also those that say no."""
    simulation, policy = tmp_path / "sim.yaml", tmp_path / "policy.yaml"
    simulation.write_text(
        f"/**/sim_node:\n  ros__parameters:\n    env: '{ENV}'\n    seed: 7\n    speed: 2.0\n    lockstep: true\n"
    )
    policy.write_text("/**/policy_node:\n  ros__parameters:\n    start_enabled: true\n    auto_restart: true\n")
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    arguments = ["autostart:=false", f"sim_params:={simulation}", f"policy_params:={policy}"]
    arguments += ["speed:=3.0", "start_enabled:=false"]
    with make_graph(tmp_path) as graph:
        process = launch("sim.launch.py", graph.domain, tmp_path / "ros", *arguments, PYTHONPATH=path)
        try:
            nodes = {"policy_node", "sim_node"}
            graph.spin(lambda: nodes <= set(graph.node.get_node_names()), 60.0, "the nodes")
            found = parameters_of(graph, "/sim_node", ["env", "seed", "speed", "lockstep"])
            assert [found[0].string_value, found[1].integer_value] == [ENV, 7]
            assert [found[2].double_value, found[3].bool_value] == [3.0, True]
            found = parameters_of(graph, "/policy_node", ["start_enabled", "auto_restart", "use_sim_time"])
            assert [value.bool_value for value in found] == [False, True, True]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, (tmp_path / "ros" / "launch.log").read_text()


def parameters_of(graph: Graph, node: str, names: list[str]) -> list[ParameterValue]:
    request = GetParameters.Request(names=names)
    return list(graph.call(GetParameters, f"{node}/get_parameters", request).values)


def test_record_covers_the_whole_loop(tmp_path: Path) -> None:
    told = tmp_path / "told"
    fake = tmp_path / "bin" / "ros2"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}.part && mv {told}.part {told}\nexec sleep 60\n')
    fake.chmod(0o755)
    variables = {
        "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = ["autostart:=false", "record:=true", f"bag:={tmp_path / 'bag'}", f"env:={ENV}"]
    with make_graph(tmp_path) as graph:
        process = launch("sim.launch.py", graph.domain, tmp_path / "ros", *arguments, **variables)
        try:
            graph.spin(told.exists, 30.0, "the recorder to be started")
            nodes = {"reward_node", "policy_node", "sim_node"}
            graph.spin(lambda: nodes <= set(graph.node.get_node_names()), 30.0, "the nodes")
            published = {name for name, _ in graph.node.get_topic_names_and_types()}
        finally:
            process.send_signal(signal.SIGINT)
        process.wait(30)
    words = told.read_text().splitlines()
    assert words[:4] == ["bag", "record", "-o", str(tmp_path / "bag")]
    topics = {word for word in words[4:] if word.startswith("/") and "." not in word}
    assert {"/clock", "/camera/image", "/reward_node/reward", "/policy_node/episode", "/sim_node/success"} <= topics
    # The action's publisher comes with configuration, whose policy is not there.
    assert topics - {"/policy_node/action"} <= published
