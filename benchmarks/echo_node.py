"""Transport alone: answers every image with an empty reward at once."""

from __future__ import annotations

from rclpy.node import Node
from sensor_msgs.msg import Image

from v2r_msgs.msg import Reward
from v2r_ros import qos
from v2r_ros.running import run


class EchoNode(Node):
    """`image` in, `~/reward` out, nothing in between."""

    def __init__(self) -> None:
        super().__init__("echo_node")
        publisher = self.create_publisher(Reward, "~/reward", qos.reward_publisher(10.0))
        self.create_subscription(
            Image,
            "image",
            lambda image: publisher.publish(Reward(header=image.header)),
            qos.image_subscription("sensor_data"),
        )

    def close(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    raise SystemExit(run(EchoNode))
