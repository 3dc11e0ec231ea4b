"""The encoder's own time under live conditions: on every image one inference on a frame that is prepared already.

What the node's latency is compared with has to run beside the same camera, on the same warm or cold caches.
"""

from __future__ import annotations

import time

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.runtime import Session
from v2r_msgs.msg import Reward
from v2r_ros import qos
from v2r_ros.running import run


class EncoderNode(Node):
    """`image` in, `~/reward` out, with nothing but `inference_ms` in it."""

    def __init__(self) -> None:
        super().__init__("encoder_node")
        self._session = Session(load_bundle(DEFAULT_BUNDLE), providers=["cpu"])
        self._session.warm_up()
        size = self._session.size
        self._frame = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        self._publisher = self.create_publisher(Reward, "~/reward", qos.reward_publisher(10.0))
        self.create_subscription(Image, "image", self._on_image, qos.image_subscription("sensor_data"))

    def _on_image(self, image: Image) -> None:
        start = time.perf_counter()
        self._session(self._frame)
        message = Reward(header=image.header)
        message.inference_ms = (time.perf_counter() - start) * 1e3
        self._publisher.publish(message)

    def close(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    raise SystemExit(run(EncoderNode))
