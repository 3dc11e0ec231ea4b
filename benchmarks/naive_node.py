"""The node that people write today: torch eager inside the callback, a queue of 10, torchvision transforms.

Preprocessing as VIP's and R3M's own examples have it (PIL image, Resize, CenterCrop, ToTensor, times 255), torch with
its default number of threads. Encoder and reward are ours, so only the way in which they are run differs.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image as PillowImage
from rclpy.node import Node
from sensor_msgs.msg import Image

from v2r_core.encoders.zoo import create_encoder
from v2r_core.video import open_video
from v2r_msgs.msg import Reward
from v2r_ros import qos
from v2r_ros.running import run
from v2r_ros.video_node import DEMONSTRATION


class NaiveNode(Node):
    """`image` in, `~/reward` out: minus the distance to the last frame of the demonstration."""

    def __init__(self) -> None:
        super().__init__("naive_node")
        if threads := self.declare_parameter("threads", 0).value:
            torch.set_num_threads(threads)
        encoder = create_encoder(self.declare_parameter("encoder", "efficientnet_lite0").value).eval()
        self._network = encoder.backbone
        self._normalise = T.Normalize(encoder.preprocess.mean, encoder.preprocess.std)
        self._transforms = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor()])
        with open_video(DEMONSTRATION) as video:
            self._goal = self._embed(video[-1])
        self._publisher = self.create_publisher(Reward, "~/reward", qos.reward_publisher(10.0))
        self.create_subscription(Image, "image", self._on_image, 10)

    def _embed(self, frame: np.ndarray) -> torch.Tensor:
        pixels = self._transforms(PillowImage.fromarray(frame)) * 255.0
        with torch.no_grad():
            return self._network(self._normalise(pixels / 255.0)[None])[0]

    def _on_image(self, image: Image) -> None:
        frame = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        message = Reward(header=image.header)
        message.value = -float(torch.linalg.vector_norm(self._embed(frame) - self._goal))
        self._publisher.publish(message)

    def close(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    raise SystemExit(run(NaiveNode))
