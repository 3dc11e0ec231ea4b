"""A reward_node process under test, with a camera and ears in this process."""

from __future__ import annotations

import array
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import CompressedImage, Image

from v2r_msgs.msg import Reward, RewardInfo
from v2r_ros import qos
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph, GraphError
from v2r_ros.images import rgb_to_message

PATIENCE = 15.0


class NodeUnderTest:
    """Starts reward_node, publishes images to it and collects what it says.

    Attributes:
        graph: the processes.
        rewards, infos, diagnostics: messages in the order of their arrival.
    """

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.graph = graph
        self.rewards: list[Reward] = []
        self.infos: list[RewardInfo] = []
        self.diagnostics: list[DiagnosticArray] = []
        node = graph.node
        node.create_subscription(Reward, "/reward_node/reward", self.rewards.append, 100)
        node.create_subscription(RewardInfo, "/reward_node/info", self.infos.append, qos.latched())
        node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.camera = node.create_publisher(Image, "/image", qos.image_publisher())
        self.compressed_camera = node.create_publisher(CompressedImage, "/image/compressed", qos.image_publisher())
        self.process = graph.start("v2r_ros.reward_node", parameters)

    def configure(self) -> bool:
        """Asks for the transition and says whether it was made."""
        return self.graph.transition("/reward_node", CONFIGURE)

    def activate(self) -> bool:
        """Configures nothing; activates and waits until the camera is heard."""
        done = self.graph.transition("/reward_node", ACTIVATE)
        if done:
            self.wait(
                lambda: self.camera.get_subscription_count() + self.compressed_camera.get_subscription_count() > 0
            )
            self.wait(lambda: self.graph.node.count_publishers("/reward_node/reward") > 0)
        return done

    def wait(self, condition: Callable[[], bool], timeout: float = PATIENCE, what: str = "a condition") -> None:
        """Spins until it holds."""
        self.graph.spin(condition, timeout, what)

    def send(self, frame: np.ndarray, stamp: float | None = None, **broken: object) -> Image:
        """Publishes an image; keywords overwrite fields of the message."""
        message = rgb_to_message(frame)
        message.header.frame_id = "camera"
        seconds = time.time() if stamp is None else stamp
        message.header.stamp.sec = int(seconds)
        message.header.stamp.nanosec = int((seconds - int(seconds)) * 1e9)
        for name, value in broken.items():
            setattr(message, name, array.array("B", value) if name == "data" else value)
        self.camera.publish(message)
        return message

    def answer(self, frame: np.ndarray, stamp: float | None = None, **broken: object) -> Reward:
        """Publishes an image and waits for the reward with its header; sends again if the network lost it."""
        for _ in range(5):
            message = self.send(frame, stamp, **broken)
            found: list[Reward] = []

            def arrived(message: Image = message, found: list[Reward] = found) -> bool:
                found[:] = [
                    r for r in self.rewards if r.header == message.header and r.status != Reward.STATUS_STALE_IMAGE
                ]
                return bool(found)

            try:
                self.wait(arrived, 2.0, "a reward")
                return found[-1]
            except GraphError:
                if self.process.poll() is not None:
                    raise
        raise AssertionError(f"no reward for the image\n{self.log()}")

    def log(self) -> str:
        """What the node printed."""
        return self.graph.log("reward_node")


def make_graph(tmp_path: Path) -> Graph:
    """A graph with its logs in the test's folder."""
    return Graph(tmp_path / "logs")
