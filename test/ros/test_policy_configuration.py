"""What policy_node refuses to be configured with, what is left of a refusal, and the services before an episode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_harness import make_graph
from policy_harness import PolicyUnderTest, moves
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import Trigger
from tiny_policy import write_seeker

from v2r_core.deploy.policy import MANIFEST
from v2r_core.rl.replay import ReplayStore
from v2r_ros.graph import Graph


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    with make_graph(tmp_path) as graph:
        yield graph


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_seeker(tmp_path / "policy"))


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"action_type": "joint_trajectory", "joint_names": ["a", "b"]}, "hold"),
        ({"action_type": "twist_stamped", "when_unsafe": "hold"}, "goes on"),
        ({"action_type": "twist_stamped", "twist_axes": ["linear.x"]}, "twist_axes"),
        ({"action_type": "joint_trajectory", "when_unsafe": "hold", "joint_names": ["a"]}, "joint_names"),
        ({"action_scale": [1.0, 1.0, 1.0]}, "action_scale has 3 numbers, the policy has 2"),
        ({"action_low": [1.0], "action_high": [-1.0]}, "above action_high"),
        ({"action_scale": [0.0]}, "action_scale"),
        ({"model": ""}, "model is empty"),
        ({"action_low": [0.2], "action_high": [0.5]}, "number 0 of a command has to lie in 0.2 to 0.5"),
        ({"action_low": [-1.0], "action_high": [0.5, -0.1]}, "number 1 of a command has to lie in -1 to -0.1"),
        ({"reset_environment": "bad name"}, "reset_environment is 'bad name'"),
        ({"reset_environment": "{what}/reset"}, "reset_environment is '{what}/reset'"),
        ({"reset_reward": "reward_node/"}, "reset_reward is 'reward_node/'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_that_do_not_fit_refuse_configuration(graph: Graph, model: str, parameters: dict, word: str) -> None:
    node = PolicyUnderTest(graph, **{"model": model} | parameters)
    assert not node.configure()
    assert word in node.log()
    assert "Traceback" not in node.log()
    assert node.process.poll() is None
    node.stop()


def test_a_folder_for_other_images_refuses_configuration(graph: Graph, model: str, tmp_path: Path) -> None:
    from v2r_core.rl.replay import Layout

    ReplayStore(tmp_path / "data", Layout((3, 84, 84), "uint8", 2), 1 << 22).close()
    node = PolicyUnderTest(graph, model=model, record_dir=str(tmp_path / "data"))
    assert not node.configure()
    assert "84" in node.log() and "choose another folder" in node.log()
    node.stop()


def test_a_refused_reset_starts_no_episode(graph: Graph, model: str) -> None:
    def refuse(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = False, "the drawer is stuck"
        return response

    graph.node.create_service(Trigger, "/robot/reset", refuse)
    node = PolicyUnderTest(graph, model=model, reset_environment="/robot/reset", reset_timeout=1.0).start()
    node.enable()
    node.wait(lambda: "the drawer is stuck" in node.log())
    node.wait(lambda: node.value("state") == "disabled")
    assert not any(moves(action) for action in node.actions)
    assert node.resets == 0
    node.stop()


def test_a_reset_service_that_is_not_there_is_named(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, reset_environment="nowhere/reset", reset_timeout=0.5).start()
    node.enable()
    node.wait(lambda: "/nowhere/reset is not there" in node.log())
    node.stop()


@pytest.mark.parametrize("name", ["actor.onnx", MANIFEST])
def test_a_changed_file_refuses_configuration(graph: Graph, model: str, name: str) -> None:
    file = Path(model) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    node = PolicyUnderTest(graph, model=model)
    assert not node.configure()
    assert name in node.log()
    assert not node.enable().success
    assert not node.actions
    node.stop()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"action_dim": 3, "check": {"seed": 0, "action": [0, 0, 0], "tolerance": 1}}, "3 finite numbers expected"),
        ({"frame_stack": 2}, "(6, 32, 32)"),
        ({"preprocess": {"size": 64, "mode": "squash", "resize_to": 64, "mean": [0] * 3, "std": [1] * 3}}, "64, 64"),
    ],
    ids=["action", "stack", "image"],
)
def test_a_bundle_for_something_else_refuses_configuration(graph: Graph, model: str, changes: dict, word: str) -> None:
    manifest = Path(model) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    node = PolicyUnderTest(graph, model=model)
    assert not node.configure()
    assert word in node.log()
    node.stop()


def test_limits_without_zero_are_fine_where_nothing_stops_with_zero(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, action_low=[0.2], action_high=[0.5], when_unsafe="hold").start()
    node.enable()
    node.until_moving()
    node.enable(False)
    node.wait(lambda: bool(node.episodes))
    assert all(0.2 <= number <= 0.5 for action in node.actions for number in action.data)
    node.stop()


def test_a_refusal_leaves_nothing_behind(graph: Graph, model: str, tmp_path: Path) -> None:
    names = {"reset_environment": "robot/reset", "reset_reward": "bad name"}
    node = PolicyUnderTest(graph, model=model, record_dir=str(tmp_path / "data"), **names)
    assert not node.configure()

    def left() -> int:
        clients = graph.node.get_client_names_and_types_by_node("policy_node", "/")
        return graph.node.count_publishers("/policy_node/action") + ("/robot/reset" in dict(clients))

    graph.spin(lambda: not left(), 5.0, "publisher and client to go")
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="reward_node/reset")
    request = SetParameters.Request(parameters=[Parameter(name="reset_reward", value=value)])
    (result,) = graph.call(SetParameters, "/policy_node/set_parameters", request).results
    assert result.successful, result.reason
    assert node.configure(), node.log()
    graph.spin(lambda: left() == 2, 5.0, "publisher and client")
    node.stop()
