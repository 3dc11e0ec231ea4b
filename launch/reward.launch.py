"""Starts reward_node on a camera topic, e.g. ros2 launch v2r_ros reward.launch.py image:=/camera/image_raw."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from v2r_ros.environment import node_environment, share_folder

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
    "use_sim_time": ("false", "take the time from /clock"),
    "log_level": ("info", "debug, info, warn or error"),
}


def _value(context: LaunchContext, name: str) -> str:
    return LaunchConfiguration(name).perform(context)


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    parameters: list[object] = []
    if params_file := _value(context, "params_file"):
        parameters.append(params_file)
    own: dict[str, object] = {"use_sim_time": _value(context, "use_sim_time").lower() == "true"}
    for name in ("model", "reward", "goal", "goals_dir"):
        if value := _value(context, name):
            own[name] = ParameterValue(value, value_type=str)
    if compressed := _value(context, "compressed").lower() == "true":
        own["image_transport"] = "compressed"
    parameters.append(own)
    image = _value(context, "image")
    relative = "image/compressed" if compressed else "image"
    node = LifecycleNode(
        package="v2r_ros",
        executable="reward_node",
        name="reward_node",
        namespace=_value(context, "namespace"),
        parameters=parameters,
        remappings=[(relative, f"{image}/compressed" if compressed else image)],
        arguments=["--ros-args", "--log-level", f"reward_node:={_value(context, 'log_level')}"],
        output="screen",
    )
    return [node, *_autostart(node, _value(context, "autostart").lower() == "true")]


def _autostart(node: LifecycleNode, wanted: bool) -> list[LaunchDescriptionEntity]:
    """Configures when the process runs, activates when it is configured."""
    if not wanted:
        return []

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    configure = OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    return [RegisterEventHandler(activate), RegisterEventHandler(configure)]


def _record(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """`ros2 bag record` of what matters, with QoS overrides under the names that the topics have in this namespace."""
    namespace = "/" + _value(context, "namespace").strip("/")
    prefix = "" if namespace == "/" else namespace
    image = _value(context, "image")
    topics = [image if image.startswith("/") else f"{prefix}/{image}"]
    if _value(context, "compressed").lower() == "true":
        topics = [f"{topics[0]}/compressed"]
    topics += [f"{prefix}/reward_node/reward", f"{prefix}/reward_node/info", "/diagnostics"]
    overrides = share_folder("config") / "recording_qos.yaml"
    if prefix:
        text = overrides.read_text().replace("\n/reward_node", f"\n{prefix}/reward_node")
        handle, name = tempfile.mkstemp(suffix=".yaml", prefix="v2r_recording_qos_")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        overrides = Path(name)
    bag = _value(context, "bag") or datetime.now().strftime("v2r_%Y-%m-%d_%H-%M-%S")
    command = ["ros2", "bag", "record", "-o", bag, "--qos-profile-overrides-path", str(overrides), *topics]
    if _value(context, "use_sim_time").lower() == "true":
        command.append("--use-sim-time")
    return [ExecuteProcess(cmd=command, output="screen", sigterm_timeout="20")]


def generate_launch_description() -> LaunchDescription:
    """One node, its environment, and a recorder when asked for."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    environment = [SetEnvironmentVariable(name, value) for name, value in node_environment().items()]
    record = OpaqueFunction(function=_record, condition=IfCondition(LaunchConfiguration("record")))
    return LaunchDescription([*arguments, *environment, OpaqueFunction(function=_node), record])
