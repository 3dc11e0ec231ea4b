"""What the launch files share. Needs `launch` and `launch_ros`, which are on a robot and not among the wheels."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def declare(arguments: Mapping[str, tuple[str, str]]) -> list[LaunchDescriptionEntity]:
    """Launch arguments out of (default, description) by name."""
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]


def value(context: LaunchContext, name: str) -> str:
    """What an argument was given."""
    return LaunchConfiguration(name).perform(context)


def is_true(context: LaunchContext, name: str) -> bool:
    """Whether an argument is true."""
    return value(context, name).lower() == "true"


def autostart(node: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Configures when the process runs, activates when it is configured."""

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


def record_bag(bag: str, overrides: str, topics: list[str], use_sim_time: bool) -> ExecuteProcess:
    """`ros2 bag record` into a folder; empty: v2r_<date>_<time> here."""
    out = bag or datetime.now().strftime("v2r_%Y-%m-%d_%H-%M-%S")
    command = ["ros2", "bag", "record", "-o", out, "--qos-profile-overrides-path", overrides, *topics]
    if use_sim_time:
        command.append("--use-sim-time")
    return ExecuteProcess(cmd=command, output="screen", sigterm_timeout="20")
