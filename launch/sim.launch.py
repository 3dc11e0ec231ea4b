"""A policy in its closed loop: a simulated task as camera and actuator, reward_node, policy_node, and a recording.

ros2 launch v2r_ros sim.launch.py policy:=my_policy model:=my_reward env:=metaworld:door-close-v3
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from v2r_ros.environment import node_environment
from v2r_ros.launching import declare, include_loop, record_loop, value

IMAGE, ACTION, REWARD = "/camera/image", "/policy_node/action", "/reward_node/reward"
TOPICS = [
    "/clock",
    IMAGE,
    "/camera/camera_info",
    ACTION,
    REWARD,
    "/reward_node/info",
    "/policy_node/episode",
    "/sim_node/success",
    "/diagnostics",
]
ARGUMENTS = {
    "policy": ("", "folder of the policy; has to be given here or in policy_params"),
    "model": ("", "folder of the reward's bundle; empty: the shipped default, which needs a goal"),
    "reward": ("", "vip, uvd, pixel, or what the bundle has learned; empty: the bundle's"),
    "goal": ("", "goal image or demonstration video, relative to goals_dir or package://"),
    "goals_dir": ("", "folder that goal files must lie in; empty: the shipped clips"),
    "env": ("", "metaworld:TASK, dm_control:DOMAIN-TASK, gym:ID"),
    "action_repeat": ("", "steps of the simulator for each action, as in the policy's training"),
    "horizon": ("", "steps of the simulator in an episode; 0: its own limit"),
    "seed": ("", "seed of the first episode"),
    "speed": ("", "factor on real time; 0: as fast as the actions come, only with lockstep"),
    "lockstep": ("", "true: publish the next image only after the action for the last one, and its reward, have come"),
    "sim_params": ("", "YAML file of sim_node's parameters; the arguments above win where they are not empty"),
    "reward_params": ("", "YAML file of reward_node's parameters"),
    "policy_params": ("", "YAML file of policy_node's parameters"),
    "record_dir": ("", "folder for transitions; empty: none are written"),
    "start_enabled": ("true", "begin at once; false: wait for ~/enable; wins over the file"),
    "auto_restart": ("true", "one episode after the other; wins over the file"),
    "record": ("false", "record all topics of the loop with ros2 bag"),
    "bag": ("", "folder of the recording; empty: v2r_<date>_<time> here"),
    "autostart": ("true", "configure and activate the lifecycle nodes at once"),
}
SIMULATION = {"env": str, "action_repeat": int, "horizon": int, "seed": int, "speed": float, "lockstep": bool}


def _simulation(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: kind for name, kind in SIMULATION.items() if value(context, name)}
    own = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in given.items()}
    file = value(context, "sim_params")
    return [
        Node(
            package="v2r_ros",
            executable="sim_node",
            name="sim_node",
            parameters=[*([file] if file else []), *([own] if own else [])],
            remappings=[("action", ACTION), ("reward", REWARD)],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """sim_node, reward.launch.py, policy.launch.py, and a recorder when asked for."""
    environment = [SetEnvironmentVariable(name, text) for name, text in node_environment().items()]
    return LaunchDescription(
        [
            *declare(ARGUMENTS),
            *environment,
            record_loop(TOPICS),
            *include_loop(IMAGE, REWARD, ACTION, "/sim_node/reset", "reward_params", "policy_params"),
            OpaqueFunction(function=_simulation),
        ]
    )
