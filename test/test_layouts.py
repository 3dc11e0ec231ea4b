"""Every topic and field that a layout for Foxglove, PlotJuggler or rviz names is one that the node has."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
REWARD = "/reward_node/reward"
_DECLARED = re.compile(r"^(?:[a-z_]+/)?[A-Za-z0-9_]+(?:<=\d+)?(?:\[[^\]]*\])?\s+([a-z][a-z0-9_]*)\s*(?:#.*)?$")
_CONSTANT = re.compile(r"^uint8 STATUS_([A-Z_]+)=(\d+)")


def lines() -> list[str]:
    return (ROOT / "v2r_msgs" / "msg" / "Reward.msg").read_text().splitlines()


def fields() -> set[str]:
    """Names of the fields of v2r_msgs/Reward, constants left out."""
    return {found[1] for line in lines() if (found := _DECLARED.match(line))}


def published() -> set[str]:
    """Topics of reward_node as reward.launch.py starts it by default, and the camera that it listens to."""
    tree = ast.parse((ROOT / "v2r_ros" / "reward_node.py").read_text())
    names = {
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"create_publisher", "create_lifecycle_publisher"}
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    assert names == {"~/reward", "~/overlay", "~/info", "/diagnostics"}
    launch = ast.parse((ROOT / "launch" / "reward.launch.py").read_text())
    (arguments,) = [
        ast.literal_eval(each.value)
        for each in launch.body
        if isinstance(each, ast.Assign) and getattr(each.targets[0], "id", "") == "ARGUMENTS"
    ]
    assert arguments["namespace"][0] == ""
    return {name.replace("~", "/reward_node") for name in names} | {"/" + arguments["image"][0]}


def walk(node: object) -> Iterator[tuple[str, object]]:
    """All keys and values of a JSON tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def leaves(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
        return
    assert isinstance(node, dict) and node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    yield from leaves(node["first"])
    yield from leaves(node["second"])


@pytest.fixture
def foxglove() -> dict:
    return json.loads((CONFIG / "foxglove_layout.json").read_text())


def test_the_interface_is_read_right() -> None:
    assert {"reward", "progress", "status", "subgoal_index", "component_values", "goal_id"} <= fields()
    assert not any(name.isupper() for name in fields())
    assert "/reward_node/overlay" in published() and "/image" in published()


def test_foxglove_names_only_what_there_is(foxglove: dict) -> None:
    topics, paths = set(), set()
    for key, value in walk(foxglove["configById"]):
        if key in ("imageTopic", "topicToRender"):
            topics.add(value)
        elif key in ("path", "value"):
            topic, _, field = str(value).partition(".")
            topics.add(topic)
            paths.add(field)
    assert topics == {"/reward_node/overlay", "/image", REWARD, "/diagnostics"} and topics <= published()
    assert {"reward", "value", "progress", "uncertainty", "status"} <= paths <= fields()


def test_foxglove_places_each_panel_once(foxglove: dict) -> None:
    placed = list(leaves(foxglove["layout"]))
    assert sorted(placed) == sorted(foxglove["configById"])
    kinds = {name.partition("!")[0] for name in placed}
    assert {"Image", "Plot", "Gauge", "Indicator", "DiagnosticSummary"} <= kinds


def test_foxglove_knows_each_status(foxglove: dict) -> None:
    rules = foxglove["configById"]["Indicator!status"]["rules"]
    statuses = {found[2]: found[1].replace("_", " ").lower() for line in lines() if (found := _CONSTANT.match(line))}
    assert {rule["rawValue"]: rule["label"] for rule in rules} == statuses


def test_plotjuggler_names_only_what_there_is() -> None:
    root = ElementTree.parse(CONFIG / "plotjuggler_layout.xml").getroot()
    curves = [curve.get("name", "") for curve in root.iter("curve")]
    assert all(name.rpartition("/")[0] == REWARD for name in curves)
    shown = {name.rpartition("/")[2] for name in curves}
    assert {"reward", "value", "progress", "uncertainty"} <= shown <= fields()
    for splitter in root.iter("DockSplitter"):
        parts = [each for each in splitter if each.tag in ("DockArea", "DockSplitter")]
        sizes = [float(each) for each in splitter.get("sizes", "").split(";")]
        assert len(parts) == len(sizes) == int(splitter.get("count", 0)) and sum(sizes) == pytest.approx(1)


def test_rviz_shows_the_camera_and_the_overlay() -> None:
    displays = yaml.safe_load((CONFIG / "v2r.rviz").read_text())["Visualization Manager"]["Displays"]
    assert {each["Class"] for each in displays} == {"rviz_default_plugins/Image"}
    topics = {each["Topic"]["Value"] for each in displays}
    assert topics == {"/image", "/reward_node/overlay"} and topics <= published()
    # Best effort hears every publisher.
    assert {each["Topic"]["Reliability Policy"] for each in displays} == {"Best Effort"}
