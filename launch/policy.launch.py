"""Starts policy_node beside a running reward_node, e.g. ros2 launch v2r_ros policy.launch.py model:=my_policy."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from v2r_ros.environment import node_environment
from v2r_ros.launching import autostart, declare, is_true, value

ARGUMENTS = {
    "namespace": ("", "namespace of the node and of its relative topics"),
    "model": ("", "folder of the policy; has to be given here or in params_file"),
    "image": ("image", "camera topic (sensor_msgs/Image); with compressed:=true its /compressed sibling is used"),
    "compressed": ("false", "subscribe to <image>/compressed"),
    "reward": ("reward_node/reward", "reward topic (v2r_msgs/Reward)"),
    "action": ("policy_node/action", "topic that the actuator listens to"),
    "reset_environment": ("", "Trigger service that resets robot or simulation before an episode; empty: none"),
    "record_dir": ("", "folder for transitions; empty: none are written"),
    "params_file": ("", "YAML file of parameters; the arguments above win where they are not empty"),
    "start_enabled": ("", "true: the robot moves at once, without ~/enable; for simulations"),
    "auto_restart": ("", "true: begin the next episode after the end of one"),
    "autostart": ("true", "configure and activate at once; false: leave that to a lifecycle manager"),
    "use_sim_time": ("", "true: take the time from /clock"),
    "log_level": ("info", "debug, info, warn or error"),
}
FLAGS = ("start_enabled", "auto_restart", "use_sim_time")


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    parameters: list[object] = []
    if params_file := value(context, "params_file"):
        parameters.append(params_file)
    own: dict[str, object] = {name: is_true(context, name) for name in FLAGS if value(context, name)}
    for name in ("model", "reset_environment", "record_dir"):
        if given := value(context, name):
            own[name] = ParameterValue(given, value_type=str)
    if is_true(context, "compressed"):
        own["image_transport"] = "compressed"
    parameters.append(own)
    image = value(context, "image")
    remappings = [
        ("image", image),
        ("image/compressed", f"{image}/compressed"),
        ("reward", value(context, "reward")),
        ("~/action", value(context, "action")),
    ]
    node = LifecycleNode(
        package="v2r_ros",
        executable="policy_node",
        name="policy_node",
        namespace=value(context, "namespace"),
        parameters=parameters,
        remappings=remappings,
        arguments=["--ros-args", "--log-level", f"policy_node:={value(context, 'log_level')}"],
        output="screen",
    )
    return [node, *(autostart(node) if is_true(context, "autostart") else [])]


def generate_launch_description() -> LaunchDescription:
    """One node and its environment."""
    environment = [SetEnvironmentVariable(name, text) for name, text in node_environment().items()]
    return LaunchDescription([*declare(ARGUMENTS), *environment, OpaqueFunction(function=_node)])
