"""What the launch files share. Needs `launch` and `launch_ros`, which are on a robot and not among the wheels."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from v2r_ros.environment import share_folder


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


def include_node(name: str, **arguments: str | LaunchConfiguration) -> GroupAction:
    """Another launch file of ours, in simulated time; its arguments do not leak into the next."""
    source = PythonLaunchDescriptionSource(str(share_folder("launch") / name))
    common = {"use_sim_time": "true", "autostart": LaunchConfiguration("autostart")}
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=(common | arguments).items())])


def include_loop(
    image: str, reward: str, action: str, reset_environment: str, reward_params: str, policy_params: str
) -> list[LaunchDescriptionEntity]:
    """reward_node and policy_node of a closed loop, under the arguments that its launch files share.

    Args:
        image: topic of the camera.
        reward: topic of the rewards.
        action: topic of the actions.
        reset_environment: service that resets the simulation.
        reward_params, policy_params: names of the arguments with their files of parameters.
    """
    given = LaunchConfiguration
    return [
        include_node(
            "reward.launch.py",
            image=image,
            record="false",
            params_file=given(reward_params),
            **{name: given(name) for name in ("model", "reward", "goal", "goals_dir")},
        ),
        include_node(
            "policy.launch.py",
            image=image,
            model=given("policy"),
            params_file=given(policy_params),
            reward=reward,
            action=action,
            reset_environment=reset_environment,
            **{name: given(name) for name in ("record_dir", "start_enabled", "auto_restart")},
        ),
    ]


def record_bag(bag: str, overrides: str, topics: list[str], use_sim_time: bool) -> ExecuteProcess:
    """`ros2 bag record` into a folder; empty: v2r_<date>_<time> here."""
    out = bag or datetime.now().strftime("v2r_%Y-%m-%d_%H-%M-%S")
    command = ["ros2", "bag", "record", "-o", out, "--qos-profile-overrides-path", overrides, *topics]
    if use_sim_time:
        command.append("--use-sim-time")
    return ExecuteProcess(cmd=command, output="screen", sigterm_timeout="20")


def record_loop(topics: list[str]) -> OpaqueFunction:
    """`ros2 bag record` of a closed loop's topics in simulated time, if the argument `record` is true."""

    def record(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        overrides = str(share_folder("config") / "recording_qos.yaml")
        return [record_bag(value(context, "bag"), overrides, topics, use_sim_time=True)]

    return OpaqueFunction(function=record, condition=IfCondition(LaunchConfiguration("record")))
