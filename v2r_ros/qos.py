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
        liveliness_lease_duration=Duration(seconds=2.0),
    )


def latched() -> QoSProfile:
    """The last message reaches whoever comes later."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
