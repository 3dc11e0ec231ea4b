"""The Gazebo world without Gazebo: whether it is consistent in itself and with its bridge, its physics, its resets."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pytest
import tabletop
import yaml
from node_harness import make_graph
from policy_harness import PolicyUnderTest
from sensor_msgs.msg import CameraInfo, JointState
from std_srvs.srv import Trigger
from tiny_policy import write_seeker

from v2r_ros.actions import ActionMap, ActionMessages, check_when_unsafe
from v2r_ros.gazebo_reset import AGAIN_S, AREA, BLOCK, BLOCK_Z, WORLD, block_place
from v2r_ros.graph import Graph
from v2r_ros.parameters import POLICY_NODE, SIM_NODE

ROOT = Path(__file__).parents[2]
TABLE_TOP = 0.75
# Library, class and the place where it has to stand, as in the SDF files under examples/worlds of gz-sim, branch
# gz-sim8 (Harmonic). Gazebo finds nothing under a wrong name and goes on without it.
SYSTEMS = {
    "Physics": ("gz-sim-physics-system", "world"),
    "UserCommands": ("gz-sim-user-commands-system", "world"),
    "SceneBroadcaster": ("gz-sim-scene-broadcaster-system", "world"),
    "Sensors": ("gz-sim-sensors-system", "world"),
    "PosePublisher": ("gz-sim-pose-publisher-system", "block"),
    "JointTrajectoryController": ("gz-sim-joint-trajectory-controller-system", "pusher"),
    "JointStatePublisher": ("gz-sim-joint-state-publisher-system", "pusher"),
}
# What each of them publishes or takes: the sources of the same branch, src/systems/*/*.cc.
TAKES = {"JointTrajectoryController": "gz.msgs.JointTrajectory"}
GIVES = {"JointStatePublisher": "gz.msgs.Model", "PosePublisher": "gz.msgs.Pose"}
# The pairs that ros_gz_bridge converts: ros_gz_bridge/ros_gz_bridge/mappings.py of gazebosim/ros_gz, branch jazzy.
MAPPINGS = {
    ("geometry_msgs/msg/PoseStamped", "gz.msgs.Pose"),
    ("rosgraph_msgs/msg/Clock", "gz.msgs.Clock"),
    ("sensor_msgs/msg/CameraInfo", "gz.msgs.CameraInfo"),
    ("sensor_msgs/msg/JointState", "gz.msgs.Model"),
    ("trajectory_msgs/msg/JointTrajectory", "gz.msgs.JointTrajectory"),
}
# What its parameter_bridge reads of an entry: src/bridge_config.cpp of the same branch. Other keys it just ignores.
BRIDGE_KEYS = {"ros_topic_name", "gz_topic_name", "ros_type_name", "gz_type_name", "direction", "subscriber_queue"}
LINKS = {f"{link.model}/{link.name}": link for link in tabletop.links()}
JOINTS = {joint.name: joint for joint in tabletop.joints()}
SLIDES = {name: joint for name, joint in JOINTS.items() if joint.kind == "prismatic"}


def camera() -> Element:
    sensor = tabletop.model("camera").find("link/sensor")
    assert sensor is not None and sensor.get("type") == "camera"
    return sensor


def bridge() -> dict[str, dict]:
    entries = yaml.safe_load((ROOT / "config" / "gz_bridge.yaml").read_text())
    assert len({entry["gz_topic_name"] for entry in entries}) == len(entries)
    return {entry["ros_topic_name"]: entry for entry in entries}


def own_parameters(node: str) -> dict:
    content = yaml.safe_load((ROOT / "config" / "gazebo.yaml").read_text())
    return content[f"/**/{node}"]["ros__parameters"]


# --- the world ----------------------------------------------------------------------------------------------------


def test_names_are_unique_among_siblings() -> None:
    for parent in [tabletop.world(), *tabletop.world().iter()]:
        names = [(child.tag, child.get("name")) for child in parent if child.get("name") and child.tag != "plugin"]
        assert len(set(names)) == len(names), names
    frames = [child.get("name") for child in tabletop.model("pusher") if child.tag in ("link", "joint")]
    assert len(set(frames)) == len(frames)  # links and joints share one room for names


def test_every_system_is_there_under_its_name_and_in_its_place() -> None:
    found = {}
    for parent in [tabletop.world(), *tabletop.world().findall("model")]:
        for plugin in parent.findall("plugin"):
            namespace, _, name = plugin.get("name", "").rpartition("::")
            assert namespace == "gz::sim::systems"
            found[name] = (plugin.get("filename"), "world" if parent.tag == "world" else parent.get("name"))
    assert found == SYSTEMS
    assert tabletop.plugins(tabletop.world())["Sensors"].findtext("render_engine") == "ogre2"


def test_what_moves_has_the_inertia_of_its_shape() -> None:
    moving = [link for link in LINKS.values() if not link.static]
    assert {link.model for link in moving} == {"block", "pusher"}
    for link in moving:
        assert link.mass > 0
        moments = [link.inertia[axis] for axis in ("ixx", "iyy", "izz")]
        assert moments == pytest.approx(tabletop.inertia_of(link), rel=1e-5), link
        assert all(link.inertia[axis] == 0 for axis in ("ixy", "ixz", "iyz"))


def test_the_pusher_is_one_chain_from_the_world_to_the_rod() -> None:
    chain = ["world"]
    for joint in JOINTS.values():
        assert joint.parent == chain[-1], joint
        chain.append(joint.child)
    assert chain == ["world", "rail", "carriage", "arm", "rod"]
    assert [joint.axis for joint in SLIDES.values()] == [(1, 0, 0), (0, 1, 0)]
    assert set(JOINTS) - set(SLIDES) == {"rail_to_world", "rod_to_arm"}
    assert all(JOINTS[name].kind == "fixed" for name in set(JOINTS) - set(SLIDES))


def test_the_limits_keep_the_rod_over_the_table_and_let_it_reach_the_block_and_the_goal() -> None:
    rod, table = LINKS["pusher/rod"], LINKS["table/top"]
    radius, length = rod.sizes
    for axis, joint in enumerate(SLIDES.values()):
        low, high = (rod.position[axis] + joint.limits[side] for side in ("lower", "upper"))
        assert -table.sizes[axis] / 2 < low - radius < high + radius < table.sizes[axis] / 2
        for thing in ("block/link", "goal/link"):
            assert low < LINKS[thing].position[axis] < high
        assert all(low < place < high for place in AREA[axis])
        assert joint.limits["effort"] > 0 and joint.limits["velocity"] > 0
    assert 0 < rod.position[2] - length / 2 - TABLE_TOP < LINKS["block/link"].sizes[2] / 2  # it hits the block low


def test_things_stand_on_the_table_and_not_in_each_other() -> None:
    table, block, goal, rod = (LINKS[name] for name in ("table/top", "block/link", "goal/link", "pusher/rod"))
    assert table.position[2] + table.sizes[2] / 2 == pytest.approx(TABLE_TOP)
    foot = LINKS["table/foot"]
    assert foot.position[2] - foot.sizes[2] / 2 == pytest.approx(0)
    assert foot.position[2] + foot.sizes[2] / 2 == pytest.approx(table.position[2] - table.sizes[2] / 2)
    assert block.position[2] - block.sizes[2] / 2 == pytest.approx(TABLE_TOP)
    assert goal.position[2] - goal.sizes[1] / 2 == pytest.approx(TABLE_TOP)
    for link in (block, goal):
        assert (np.abs(link.position[:2]) < np.array(table.sizes[:2]) / 2 - 0.05).all()
    corner = math.hypot(block.sizes[0] / 2, block.sizes[1] / 2)
    for place in [block.position[:2], *itertools.product(*AREA)]:
        assert np.linalg.norm(place - rod.position[:2]) > corner + rod.sizes[0]
        assert np.linalg.norm(place - goal.position[:2]) > goal.sizes[0]  # it is not there already


def test_the_goal_is_a_mark_and_only_the_rod_touches() -> None:
    assert LINKS["goal/link"].static and not LINKS["goal/link"].collides
    assert [name for name, link in LINKS.items() if link.model == "pusher" and link.collides] == ["pusher/rod"]
    assert all(LINKS[name].collides for name in ("ground/link", "table/top", "table/foot", "block/link"))


def test_the_camera_is_what_the_nodes_expect() -> None:
    sensor = camera()
    assert float(sensor.findtext("update_rate") or 0) == 30
    assert tabletop.numbers(sensor, "camera/image/width") == (640,)
    assert tabletop.numbers(sensor, "camera/image/height") == (480,)
    assert sensor.findtext("camera/image/format") == "R8G8B8"  # rgb8 in ROS
    assert sensor.findtext("topic") == launch_constants()["IMAGE"]
    frame = next(spec.default for spec in SIM_NODE if spec.name == "frame_id")
    assert sensor.findtext("camera/optical_frame_id") == frame  # one name with both simulators


def test_the_camera_sees_the_table_and_all_places_of_rod_and_goal() -> None:
    table, rod, goal = LINKS["table/top"], LINKS["pusher/rod"], LINKS["goal/link"]
    points = [[x * table.sizes[0] / 2, y * table.sizes[1] / 2, TABLE_TOP] for x in (-1, 1) for y in (-1, 1)]
    for sides in itertools.product(("lower", "upper"), repeat=2):
        shift = [joint.limits[side] for joint, side in zip(SLIDES.values(), sides, strict=True)]
        points.append([*(rod.position[:2] + shift), TABLE_TOP])
    points.append(goal.position.tolist())
    (fov,) = tabletop.numbers(camera(), "camera/horizontal_fov")
    seen = tabletop.pixels(np.array(points), LINKS["camera/link"], fov, 640, 480)
    assert ((seen > 10) & (seen < np.array([640, 480]) - 10)).all(), seen
    assert seen[-1][0] > 320  # x runs to the right in the image
    assert np.ptp(seen[:4, 0]) > 500  # and the table fills it


def test_the_controller_settles_well_within_a_control_step_and_within_its_force() -> None:
    controller = tabletop.plugins(tabletop.model("pusher"))["JointTrajectoryController"]
    step = float(tabletop.world().findtext("physics/max_step_size") or "nan")
    names = [part.text for part in controller.findall("joint_name")]
    assert names == list(SLIDES)
    kinds = ("velocity_p_gain", "velocity_cmd_min", "velocity_cmd_max")
    values = [[float(part.text or "nan") for part in controller.findall(kind)] for kind in kinds]
    assert all(len(column) == len(names) for column in values)  # they belong to the joints by their order
    moved = ("carriage", "arm", "rod"), ("arm", "rod")
    masses = [sum(LINKS[f"pusher/{link}"].mass for link in chain) for chain in moved]
    for name, mass, gain, low, high in zip(names, masses, *values, strict=True):
        assert 5 * step < mass / gain < 0.02, name  # a step in time that is too long for the gain would make it swing
        assert -low == high == SLIDES[name].limits["effort"]
        friction = LINKS["block/link"].friction * LINKS["block/link"].mass * 9.8
        assert friction / gain < 0.1 * own_parameters("policy_node")["action_high"][0]  # pushing hardly slows it down


def test_played_in_mujoco_the_block_is_pushed_onto_the_goal() -> None:
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed: it comes with the extra [sim]")
    done = subprocess.run([sys.executable, tabletop.__file__], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    block, goal = LINKS["block/link"], LINKS["goal/link"]
    assert seen["settled"] == pytest.approx(block.position, abs=1e-3)
    assert seen["velocity"] == pytest.approx([0.2, 0], abs=0.01)
    assert np.linalg.norm(seen["pushed"][:2] - goal.position[:2]) < goal.sizes[0] / 2
    assert seen["stopped"] == pytest.approx([0, 0], abs=1e-3)
    limits = [joint.limits for joint in SLIDES.values()]
    assert seen["corner"] == pytest.approx([limits[0]["lower"], limits[1]["upper"]], abs=2e-3)
    assert seen["end"][2] == pytest.approx(block.position[2], abs=1e-3)


# --- the bridge ---------------------------------------------------------------------------------------------------


def launch_constants() -> dict:
    """IMAGE, ACTION, REWARD and TOPICS of the launch file, which itself needs packages that are not here."""
    found: dict = {}

    def value(node: ast.expr) -> object:
        if isinstance(node, ast.List | ast.Tuple):
            return [value(element) for element in node.elts]
        return found[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    for line in ast.parse((ROOT / "launch" / "gazebo.launch.py").read_text()).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Tuple):
            names = [name.id for name in line.targets[0].elts if isinstance(name, ast.Name)]
            found |= dict(zip(names, value(line.value), strict=True))
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and line.targets[0].id == "TOPICS":
            found["TOPICS"] = value(line.value)
    return found


def gazebo_topics() -> dict[str, tuple[str, str]]:
    """Type and direction of every topic that the world has and somebody else may want."""
    topics = {
        "/clock": ("gz.msgs.Clock", "GZ_TO_ROS"),
        camera().findtext("topic") or "": ("gz.msgs.Image", "GZ_TO_ROS"),
        camera().findtext("camera/camera_info_topic") or "": ("gz.msgs.CameraInfo", "GZ_TO_ROS"),
    }
    for model in tabletop.world().findall("model"):
        for name, plugin in tabletop.plugins(model).items():
            kind, direction = (TAKES[name], "ROS_TO_GZ") if name in TAKES else (GIVES[name], "GZ_TO_ROS")
            topics[plugin.findtext("topic") or ""] = kind, direction
    return topics


def test_the_bridge_carries_every_topic_but_the_image_with_types_that_it_converts() -> None:
    carried = {}
    for entry in bridge().values():
        assert BRIDGE_KEYS >= set(entry) >= BRIDGE_KEYS - {"subscriber_queue"}
        assert (entry["ros_type_name"], entry["gz_type_name"]) in MAPPINGS
        carried[entry["gz_topic_name"]] = entry["gz_type_name"], entry["direction"]
    expected = gazebo_topics()
    assert expected.pop(launch_constants()["IMAGE"]) == ("gz.msgs.Image", "GZ_TO_ROS")  # image_bridge's
    assert carried == expected


def test_the_bridges_ros_types_are_there() -> None:
    for entry in bridge().values():
        package, middle, name = entry["ros_type_name"].split("/")
        assert middle == "msg"
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        assert isinstance(getattr(importlib.import_module(f"{package}.msg"), name), type)


def test_the_action_that_policy_node_publishes_is_the_one_that_the_bridge_takes() -> None:
    given = {spec.name: spec.default for spec in POLICY_NODE} | own_parameters("policy_node")
    assert set(own_parameters("policy_node")) <= {spec.name for spec in POLICY_NODE}
    assert not [spec.name for spec in POLICY_NODE if spec.problem(given[spec.name])]
    entry = bridge()[launch_constants()["ACTION"]]
    kind = ActionMessages(
        given["action_type"], 2, joint_names=given["joint_names"], joint_command=given["joint_command"]
    ).kind
    assert entry["ros_type_name"] == f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
    assert given["joint_names"] == list(SLIDES)
    check_when_unsafe(given["when_unsafe"], given["action_type"], given["joint_command"])
    actions = ActionMap(2, *(given[f"action_{name}"] for name in ("scale", "offset", "low", "high")))
    for corner in itertools.product((-1, 1), repeat=2):
        command = actions.command(np.array(corner, np.float32))
        assert command == pytest.approx(np.array(corner) * 0.2, abs=1e-6)
        fastest = [joint.limits["velocity"] for joint in SLIDES.values()]
        assert (np.abs(command) < fastest).all()


def test_the_recorded_topics_are_published_by_somebody() -> None:
    constants = launch_constants()
    ours = {constants["REWARD"], "/reward_node/info", "/policy_node/episode", "/diagnostics", constants["IMAGE"]}
    assert set(constants["TOPICS"]) == ours | set(bridge())
    assert bridge()["/camera/camera_info"]["ros_type_name"].endswith(CameraInfo.__name__)
    assert bridge()["/joint_states"]["ros_type_name"].endswith(JointState.__name__)


def test_policy_node_drives_the_pusher_with_the_shipped_parameters(tmp_path: Path) -> None:
    from trajectory_msgs.msg import JointTrajectory

    given = own_parameters("policy_node") | {"model": str(write_seeker(tmp_path / "policy")), "start_enabled": True}
    with make_graph(tmp_path) as graph:
        node = PolicyUnderTest(graph, JointTrajectory, **given).start()
        node.wait(lambda: any(any(action.points[0].velocities) for action in node.actions), what="a motion")
        moving = node.actions[-1]
        assert list(moving.joint_names) == list(SLIDES)
        assert len(moving.points) == 1 and not moving.points[0].positions
        assert 0 < np.abs(moving.points[0].velocities).max() <= 0.2
        assert node.enable(False).success
        node.wait(lambda: not any(node.actions[-1].points[0].velocities), what="the pusher to stop")
        node.stop()


# --- resets -------------------------------------------------------------------------------------------------------


def fake_gz(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gz` that writes its arguments, one a line and a blank line at the end, and then does `body`."""
    told = folder / "told"
    program = folder / "gz"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "" >> {told}\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return told


def later(graph: Graph) -> None:
    """Waits until a request cannot have waited for the last reset."""
    due = time.monotonic() + 1.5 * AGAIN_S
    graph.spin(lambda: time.monotonic() > due, 10.0, "the time to pass")


def calls(told: Path) -> list[list[str]]:
    return [call.split("\n") for call in told.read_text().strip().split("\n\n")] if told.exists() else []


def start_reset(graph: Graph) -> None:
    graph.start("v2r_ros.gazebo_reset", None, None, "--params-file", str(ROOT / "config" / "gazebo.yaml"))


def reset(graph: Graph) -> Trigger.Response:
    return graph.call(Trigger, "/gazebo_reset/reset", Trigger.Request())


def test_a_reset_restarts_the_world_and_then_moves_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_gz(tmp_path / "bin", "echo 'data: true'", monkeypatch)
    with make_graph(tmp_path) as graph:
        start_reset(graph)
        answer = reset(graph)
        assert answer.success, answer.message
    restart, move = calls(told)[:2]
    world = tabletop.world().get("name")
    for call, service, kind in (restart, "control", "WorldControl"), (move, "set_pose", "Pose"):
        assert call[:3] == ["service", "-s", f"/world/{world}/{service}"]
        assert call[call.index("--reqtype") + 1] == f"gz.msgs.{kind}"
        assert call[call.index("--reptype") + 1] == "gz.msgs.Boolean"
    assert restart[restart.index("--req") + 1] == "reset: {all: true}"
    x, y = block_place(own_parameters("gazebo_reset")["seed"])
    pose = move[move.index("--req") + 1]
    assert f'name: "{BLOCK}"' in pose and f"x: {x:.4f}, y: {y:.4f}, z: {BLOCK_Z}" in pose
    assert f"{x:.3f}" in answer.message


def test_requests_that_waited_for_a_reset_are_answered_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_gz(tmp_path / "bin", "sleep 0.3; echo 'data: true'", monkeypatch)
    with make_graph(tmp_path) as graph:
        start_reset(graph)
        reset(graph)  # and now both ends know each other
        client = graph.node.create_client(Trigger, "/gazebo_reset/reset")
        graph.spin(client.service_is_ready, 20.0, "the service")
        later(graph)
        before = len(calls(told))
        futures = [client.call_async(Trigger.Request()) for _ in range(3)]
        graph.spin(lambda: all(future.done() for future in futures), 20.0, "the answers")
        assert len({future.result().message for future in futures}) == 1
        assert all(future.result().success for future in futures)
        assert len(calls(told)) == before + 2
        later(graph)
        assert reset(graph).message != futures[0].result().message  # the next seed's place


def test_a_gazebo_that_does_not_answer_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_gz(tmp_path / "bin", "echo 'Service call timed out'", monkeypatch)
    with make_graph(tmp_path) as graph:
        start_reset(graph)
        answer = reset(graph)
        assert not answer.success
        assert f"/world/{WORLD}/control" in answer.message and "timed out" in answer.message
        assert all("set_pose" not in word for call in calls(told) for word in call)


def test_without_gazebo_the_refusal_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with make_graph(tmp_path) as graph:
        start_reset(graph)
        answer = reset(graph)
        assert not answer.success and "install Gazebo" in answer.message


def test_seeds_give_places_in_the_area_and_the_same_ones_again() -> None:
    places = [block_place(seed) for seed in range(200)]
    assert places == [block_place(seed) for seed in range(200)]
    for axis, (low, high) in enumerate(AREA):
        values = np.array(places)[:, axis]
        assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high
    block = LINKS["block/link"]
    assert block.model == BLOCK and block.position[2] == pytest.approx(BLOCK_Z)
    assert tabletop.world().get("name") == WORLD
