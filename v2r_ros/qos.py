"""Quality of service, named once."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy


def image_subscription(reliability: str) -> QoSProfile:
    """Newest frame only. `sensor_data` (best effort) matches every publisher; `reliable` only reliable ones."""
    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=policy)


def image_publisher() -> QoSProfile:
    """What camera drivers publish with (REP-2003)."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)


LEASE_S = 2.0
"""Liveliness lease that a reward publisher offers and a policy requests."""


def reward_publisher(max_period: float) -> QoSProfile:
    """Reliable, with an offered deadline and liveliness that a policy may request; nobody has to.

    Args:
        max_period: longest time between two messages of an active node, in seconds.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        deadline=Duration(seconds=2.0 * max_period),
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=LEASE_S),
    )


def reward_subscription(deadline: float) -> QoSProfile:
    """What a policy requests of `reward_publisher`, so that the middleware itself reports a silent or dead reward.

    Args:
        deadline: longest time between two messages in seconds; with less than the publisher offers, none arrive.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        deadline=Duration(seconds=deadline),
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=LEASE_S),
    )


def command() -> QoSProfile:
    """Newest command only, and it arrives: a stop must not be lost, and an old motion must not be carried out late."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)


def latched() -> QoSProfile:
    """The last message reaches whoever comes later."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
