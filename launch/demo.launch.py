"""The main job on a robot's own ROS: a video plays as the camera, reward_node scores it."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from v2r_ros.environment import share_folder

IMAGE = "/camera/image"


def generate_launch_description() -> LaunchDescription:
    """video_node and reward.launch.py; everything ends when the video does."""
    video = Node(
        package="v2r_ros",
        executable="video_node",
        name="video_node",
        parameters=[
            {
                "video": ParameterValue(LaunchConfiguration("video"), value_type=str),
                "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
                "wait_for_subscribers": 1,
            }
        ],
        remappings=[("image", IMAGE)],
        output="screen",
        on_exit=Shutdown(reason="the video is over"),
    )
    reward = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share_folder("launch") / "reward.launch.py")),
        launch_arguments={
            "image": IMAGE,
            "goal": LaunchConfiguration("goal"),
            "record": LaunchConfiguration("record"),
            "bag": LaunchConfiguration("bag"),
        }.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "video", default_value="", description="what to play; empty: the shipped demonstration"
            ),
            DeclareLaunchArgument("loop", default_value="false", description="play it again and again"),
            DeclareLaunchArgument("goal", default_value="success.mp4", description="goal, see reward.launch.py"),
            DeclareLaunchArgument("record", default_value="false", description="record with ros2 bag"),
            DeclareLaunchArgument("bag", default_value="", description="folder of the recording"),
            reward,
            video,
        ]
    )
