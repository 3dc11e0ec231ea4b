"""A policy in its closed loop with Gazebo Harmonic: worlds/tabletop.sdf, the bridges, reward_node, policy_node.

ros2 launch v2r_ros gazebo.launch.py policy:=my_policy model:=my_reward headless:=true
"""

from __future__ import annotations

import shlex

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import GroupAction, IncludeLaunchDescription, OpaqueFunction, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from v2r_ros.environment import node_environment, share_folder
from v2r_ros.launching import declare, include_loop, is_true, record_loop

IMAGE, ACTION, REWARD = "/camera/image", "/policy_node/action", "/reward_node/reward"
TOPICS = [
    "/clock",
    IMAGE,
    "/camera/camera_info",
    ACTION,
    "/joint_states",
    "/block/pose",
    REWARD,
    "/reward_node/info",
    "/policy_node/episode",
    "/diagnostics",
]
ARGUMENTS = {
    "policy": ("", "folder of the policy, which has two numbers an action; has to be given here or in params_file"),
    "model": ("", "folder of the reward's bundle; empty: the shipped default, which needs a goal"),
    "reward": ("", "vip, uvd, pixel, or what the bundle has learned; empty: the bundle's"),
    "goal": ("", "goal image or demonstration video, relative to goals_dir or package://"),
    "goals_dir": ("", "folder that goal files must lie in; empty: the shipped clips"),
    "params_file": (str(share_folder("config") / "gazebo.yaml"), "YAML file of the nodes' parameters"),
    "headless": ("false", "no window: Gazebo's server alone, which renders the camera without a display"),
    "record_dir": ("", "folder for transitions; empty: none are written"),
    "start_enabled": ("true", "begin at once; false: wait for ~/enable; wins over the file"),
    "auto_restart": ("true", "one episode after the other, the world is reset in between; wins over the file"),
    "record": ("false", "record all topics of the loop with ros2 bag"),
    "bag": ("", "folder of the recording; empty: v2r_<date>_<time> here"),
    "autostart": ("true", "configure and activate the lifecycle nodes at once"),
}


def _gazebo(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Gazebo with the world; when its window is closed everything ends."""
    words = ["-r", *(["-s", "--headless-rendering"] if is_true(context, "headless") else [])]
    # gz_sim.launch.py hands them to a shell.
    words.append(shlex.quote(str(share_folder("worlds") / "tabletop.sdf")))
    file = PathJoinSubstitution([FindPackageShare("ros_gz_sim"), "launch", "gz_sim.launch.py"])
    arguments = {"gz_args": " ".join(words), "on_exit_shutdown": "true"}
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments.items())
    return [GroupAction([include])]


def _bridges() -> list[LaunchDescriptionEntity]:
    """Topics, the image, and the reset, which is a node of ours."""
    config = str(share_folder("config") / "gz_bridge.yaml")
    return [
        Node(
            package="ros_gz_bridge",
            executable="parameter_bridge",
            name="gz_bridge",
            parameters=[{"config_file": config, "use_sim_time": True}],
            output="screen",
        ),
        Node(
            package="ros_gz_image",
            executable="image_bridge",
            name="gz_image_bridge",
            arguments=[IMAGE],
            parameters=[{"qos": "sensor_data", "use_sim_time": True}],
            output="screen",
        ),
        Node(
            package="v2r_ros",
            executable="gazebo_reset",
            name="gazebo_reset",
            parameters=[LaunchConfiguration("params_file"), {"use_sim_time": True}],
            output="screen",
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """Gazebo, the bridges, reward.launch.py, policy.launch.py, and a recorder when asked for."""
    environment = [SetEnvironmentVariable(name, text) for name, text in node_environment().items()]
    return LaunchDescription(
        [
            *declare(ARGUMENTS),
            # Before the environment, which is for processes that speak ROS.
            OpaqueFunction(function=_gazebo),
            *environment,
            record_loop(TOPICS),
            *_bridges(),
            *include_loop(IMAGE, REWARD, ACTION, "/gazebo_reset/reset", "params_file", "params_file"),
        ]
    )
