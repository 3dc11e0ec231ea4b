"""Starts reward_node on a camera topic, e.g. ros2 launch v2r_ros reward.launch.py image:=/camera/image_raw."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from v2r_ros.environment import node_environment, share_folder
from v2r_ros.launching import autostart, declare, is_true, record_bag, value

ARGUMENTS = {
    "namespace": ("", "namespace of the node and of its relative topics"),
    "image": ("image", "camera topic (sensor_msgs/Image); with compressed:=true its /compressed sibling is used"),
    "compressed": ("false", "subscribe to <image>/compressed"),
    "model": ("", "folder of a bundle; empty: the shipped default"),
    "reward": ("", "vip, uvd, pixel, or what the bundle has learned; empty: the bundle's"),
    "goal": ("", "goal image or demonstration video, relative to goals_dir or package://; empty: set it later"),
    "goals_dir": ("", "folder that goal files must lie in; empty: the shipped clips"),
    "params_file": ("", "YAML file of parameters; the arguments above win where they are not empty"),
    "record": ("false", "record image, reward, info and diagnostics with ros2 bag"),
    "bag": ("", "folder of the recording; empty: v2r_<date>_<time> here"),
    "autostart": ("true", "configure and activate at once; false: leave that to a lifecycle manager"),
    "use_sim_time": ("", "true: take the time from /clock; record:=true needs it also where params_file says so"),
    "log_level": ("info", "debug, info, warn or error"),
}


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    parameters: list[object] = []
    if params_file := value(context, "params_file"):
        parameters.append(params_file)
    own: dict[str, object] = (
        {"use_sim_time": is_true(context, "use_sim_time")} if value(context, "use_sim_time") else {}
    )
    for name in ("model", "reward", "goal", "goals_dir"):
        if given := value(context, name):
            own[name] = ParameterValue(given, value_type=str)
    if is_true(context, "compressed"):
        own["image_transport"] = "compressed"
    parameters.append(own)
    image = value(context, "image")
    node = LifecycleNode(
        package="v2r_ros",
        executable="reward_node",
        name="reward_node",
        namespace=value(context, "namespace"),
        parameters=parameters,
        remappings=[("image", image), ("image/compressed", f"{image}/compressed")],
        arguments=["--ros-args", "--log-level", f"reward_node:={value(context, 'log_level')}"],
        output="screen",
    )
    return [node, *(autostart(node) if is_true(context, "autostart") else [])]


def _record(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """`ros2 bag record` of what matters, with QoS overrides under the names that the topics have in this namespace."""
    namespace = "/" + value(context, "namespace").strip("/")
    prefix = "" if namespace == "/" else namespace
    image = value(context, "image")
    topics = [image if image.startswith("/") else f"{prefix}/{image}"]
    if is_true(context, "compressed"):
        topics = [f"{topics[0]}/compressed"]
    topics += [f"{prefix}/reward_node/reward", f"{prefix}/reward_node/info", "/diagnostics"]
    overrides = share_folder("config") / "recording_qos.yaml"
    if prefix:
        text = overrides.read_text().replace("\n/reward_node", f"\n{prefix}/reward_node")
        handle, name = tempfile.mkstemp(suffix=".yaml", prefix="v2r_recording_qos_")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        overrides = Path(name)
    return [record_bag(value(context, "bag"), str(overrides), topics, is_true(context, "use_sim_time"))]


def generate_launch_description() -> LaunchDescription:
    """One node, its environment, and a recorder when asked for."""
    environment = [SetEnvironmentVariable(name, value) for name, value in node_environment().items()]
    record = OpaqueFunction(function=_record, condition=IfCondition(LaunchConfiguration("record")))
    return LaunchDescription([*declare(ARGUMENTS), *environment, OpaqueFunction(function=_node), record])
