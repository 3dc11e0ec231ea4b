"""What policy_node consists of once it is configured: checked against one another, made together, freed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from v2r_core.deploy.policy import Policy, load_policy
from v2r_msgs.msg import Reward
from v2r_ros import qos
from v2r_ros.actions import ActionMap, ActionMessages, check_when_unsafe
from v2r_ros.commander import Command, Commander
from v2r_ros.resets import Resets
from v2r_ros.safety import Guard, Limits
from v2r_ros.transitions import TransitionRecorder, open_store


@dataclass(frozen=True)
class Parts:
    """A configured policy.

    Attributes:
        policy: the actor.
        commander: the only way to the actuator.
        resets: what is called before an episode.
        recorder: writes transitions, or None.
        publisher: of `~/action`.
    """

    policy: Policy
    commander: Commander
    resets: Resets
    recorder: TransitionRecorder | None
    publisher: LifecyclePublisher

    @property
    def guard(self) -> Guard:
        """Says whether the robot may move."""
        return self.commander.guard

    def free(self, node: LifecycleNode) -> None:
        """Ends what has threads and handles."""
        if self.recorder is not None:
            self.recorder.close()
        self.resets.close()
        node.destroy_lifecycle_publisher(self.publisher)


def make_parts(
    node: LifecycleNode, given: Mapping[str, Any], on_reset: Callable[[], object], complain: Callable[[str], object]
) -> Parts:
    """Loads the policy and checks that the parameters fit it.

    Args:
        node: makes publisher and clients.
        given: the values of `parameters.POLICY_NODE`.
        on_reset: see `Resets`.
        complain: logs a warning.

    Raises:
        ValueError, OSError, RuntimeError: something is missing, changed or does not fit; the message says what.
    """
    if not given["model"]:
        raise ValueError("the parameter model is empty; set it to the folder of a policy, as `v2r export` writes it")
    rewarded, action_type, when_unsafe = given["use_reward"], given["action_type"], given["when_unsafe"]
    policy = Policy(load_policy(given["model"]), given["threads"], given["providers"])
    dim = policy.action_dim
    actions = ActionMap(dim, *(given[f"action_{name}"] for name in ("scale", "offset", "low", "high")))
    check_when_unsafe(when_unsafe, action_type, given["joint_command"])
    if when_unsafe == "zero":
        actions.check_zero()
    names = {name: given[name] for name in ("twist_axes", "joint_names", "joint_command", "frame_id")}
    messages = ActionMessages(action_type, dim, period=1 / policy.rate, **names)

    def send(command: Command) -> None:
        try:
            publisher.publish(messages(command, node.get_clock().now().to_msg()))
        except Exception as error:  # the context may be gone in the middle of a shutdown
            if rclpy.ok(context=node.context):
                complain(f"publishing failed: {error}")

    limits = Limits(given["image_timeout"], given["reward_timeout"] if rewarded else None, given["warm_up_time"])
    services = {name: given[name] for name in ("reset_environment", *(["reset_reward"] if rewarded else []))}
    with ExitStack() as undo:  # what has threads and handles must not outlive a failure of what comes after it
        recorder = None
        if folder := given["record_dir"]:
            store = open_store(folder, policy.bundle.manifest.preprocess.size, dim, given["record_gb"])
            log, patience = node.get_logger(), given["reward_timeout"] if rewarded else None
            recorder = TransitionRecorder(store, log.error, patience=patience, say=log.warning)
            undo.callback(recorder.close)
        publisher = node.create_lifecycle_publisher(messages.kind, "~/action", qos.command())
        undo.callback(node.destroy_lifecycle_publisher, publisher)
        resets = Resets(node, services, given["reset_timeout"], on_reset)
        undo.pop_all()
    return Parts(policy, Commander(actions, when_unsafe, Guard(limits), send), resets, recorder, publisher)


def subscribe_to_image(
    node: LifecycleNode, given: Mapping[str, Any], on_image: Callable[[Image | CompressedImage], None]
) -> Subscription:
    """Newest image only, raw or compressed."""
    raw = given["image_transport"] == "raw"
    return node.create_subscription(
        Image if raw else CompressedImage,
        "image" if raw else "image/compressed",
        on_image,
        qos.image_subscription(given["image_qos"]),
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
    )


def subscribe_to_reward(
    node: LifecycleNode, deadline: float, guard: Guard, on_reward: Callable[[Reward], None]
) -> Subscription:
    """Rewards, and the middleware's own word on whether their publisher keeps its deadline and is alive."""

    def incompatible(_: object) -> None:
        node.get_logger().error(
            f"no rewards: their publisher offers a longer deadline than {deadline:.3f} s, or none; raise "
            "reward_deadline to twice the image_timeout of reward_node"
        )

    events = SubscriptionEventCallbacks(
        deadline=lambda _: guard.missed_deadline(),
        liveliness=lambda event: guard.alive(event.alive_count),
        incompatible_qos=incompatible,
    )
    profile = qos.reward_subscription(deadline)
    return node.create_subscription(Reward, "reward", on_reward, profile, event_callbacks=events)
