"""Records topics into an MCAP bag where rosbag2 is not installed; rosbag2, Foxglove and PlotJuggler open it."""

from __future__ import annotations

import importlib
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from v2r_ros import parameters
from v2r_ros.running import run

DISCOVERY_PERIOD_S = 0.1
DEPTH = 50
NO_TIME = QosTime(0, 0)


class Recorder(Node):
    """Subscribes to each listed topic as soon as it has a publisher, in a QoS that suits it, and writes what comes.

    Messages are kept as the bytes that came over the wire, stamped with the node's clock on arrival.
    """

    def __init__(self) -> None:
        super().__init__("recorder")
        parameters.declare(self, parameters.RECORDER)
        path = Path(self.get_parameter("bag").value)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._typestore = get_typestore(Stores.ROS2_JAZZY)
        if path.exists():
            raise ValueError(f"bag {path} exists, and recordings are never written over; give another path")
        self._bag = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._bag.open()
        self._open = True
        names: list[str] = self.get_parameter("topics").value
        self._wanted = {self.resolve_topic_name(name) for name in names}
        self._listeners: list[Subscription] = []
        self._counts: dict[str, int] = {}
        self.create_timer(DISCOVERY_PERIOD_S, self._discover)

    def _discover(self) -> None:
        for topic in sorted(self._wanted):
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            self._wanted.discard(topic)
            kinds = {publisher.topic_type for publisher in publishers}
            if len(kinds) > 1:
                self.get_logger().error(f"{topic} has several types {sorted(kinds)}; not recorded")
                continue
            self._subscribe(topic, kinds.pop(), publishers)

    def _subscribe(self, topic: str, kind: str, publishers: list[TopicEndpointInfo]) -> None:
        package, _, name = kind.split("/")
        message_type = getattr(importlib.import_module(f"{package}.msg"), name)
        if kind not in self._typestore.types:
            self._register(package)
        offered = [publisher.qos_profile for publisher in publishers]
        # Ask for what every publisher offers, as rosbag2 does: reliable if all are, latched if all are.
        reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in offered)
        latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in offered)
        profile = QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        connection = self._bag.add_connection(
            topic, kind, typestore=self._typestore, offered_qos_profiles=[_bag_qos(reliable, latched)]
        )
        self._counts[topic] = 0
        self._listeners.append(
            self.create_subscription(message_type, topic, lambda data: self._write(connection, data), profile, raw=True)
        )
        self.get_logger().info(f"recording {topic} [{kind}]")

    def _register(self, package: str) -> None:
        folder = Path(get_package_share_directory(package))
        for file in sorted(folder.glob("msg/*.msg")):
            self._typestore.register(get_types_from_msg(file.read_text(), f"{package}/msg/{file.stem}"))

    def _write(self, connection: Connection, data: bytes) -> None:
        if self._open:
            self._bag.write(connection, self.get_clock().now().nanoseconds, data)
            self._counts[connection.topic] += 1

    def close(self) -> None:
        """Closes the bag; only then is it complete."""
        if self._open:
            self._open = False
            self._bag.close()


def _bag_qos(reliable: bool, latched: bool) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        DEPTH,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        NO_TIME,
        NO_TIME,
        QosLiveliness.SYSTEM_DEFAULT,
        NO_TIME,
        False,
    )


def main() -> int:
    """Entry point of `ros2 run v2r_ros recorder`."""
    return run(Recorder)


if __name__ == "__main__":
    raise SystemExit(main())
