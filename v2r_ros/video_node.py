"""Plays a video, a folder of images or a bag as if it were a camera."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from v2r_core import CLIPS
from v2r_core.video import open_video
from v2r_core.video.resize import Frame
from v2r_ros import parameters, qos
from v2r_ros.images import rgb_to_compressed, rgb_to_message
from v2r_ros.running import run

DEMONSTRATION = CLIPS / "success.mp4"
SETTLE_S = 0.5


class VideoNode(Node):
    """Publishes `image` (or `image/compressed`) at the video's rate; ends after the last frame unless it loops.

    Frames are decoded and converted ahead of time in a thread, so that the rate holds; the stamp is the moment of
    publication, as a camera driver's would be.
    """

    def __init__(self) -> None:
        super().__init__("video_node")
        parameters.declare(self, parameters.VIDEO_NODE)
        self._video = open_video(self._parameter("video") or DEMONSTRATION)
        self._compressed: bool = self._parameter("compressed")
        self._period = 1.0 / (self._parameter("rate") or self._video.fps)
        kind, topic = (CompressedImage, "image/compressed") if self._compressed else (Image, "image")
        self._publisher = self.create_publisher(kind, topic, qos.image_publisher())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, name="playing", daemon=True)
        self._thread.start()

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _play(self) -> None:
        try:
            if self._wait_for_subscribers():
                self._publish_all()
        except Exception as error:
            if not self._stop.is_set():
                self.get_logger().error(f"playing stopped: {error}")
        if not self._stop.is_set():
            rclpy.try_shutdown(context=self.context)

    def _publish_all(self) -> None:
        start = self.get_clock().now()
        count = 0
        frame_id = self._parameter("frame_id")
        for frame in self._frames():
            message = rgb_to_compressed(frame) if self._compressed else rgb_to_message(frame)
            message.header.frame_id = frame_id
            if not self._sleep_until(start.nanoseconds * 1e-9 + count * self._period):
                return
            message.header.stamp = self.get_clock().now().to_msg()
            self._publisher.publish(message)
            count += 1
        self._stop.wait(SETTLE_S)  # leaving at once would take the last frames away from slow readers
        self.get_logger().info(f"played {count} frames")

    def _frames(self) -> Iterator[Frame]:
        yield from self._video
        while self._parameter("loop"):
            yield from self._video

    def _sleep_until(self, seconds: float) -> bool:
        while (left := seconds - self.get_clock().now().nanoseconds * 1e-9) > 0:
            if self._stop.wait(min(left, 0.1)):
                return False
        return not self._stop.is_set()

    def _wait_for_subscribers(self) -> bool:
        wanted = self._parameter("wait_for_subscribers")
        while self._publisher.get_subscription_count() < wanted:
            if self._stop.wait(0.02):
                return False
        return True

    def close(self) -> None:
        """Ends the playing thread."""
        self._stop.set()
        self._thread.join(timeout=1.0)
        self._video.close()


def main() -> int:
    """Entry point of `ros2 run v2r_ros video_node`."""
    return run(VideoNode)


if __name__ == "__main__":
    raise SystemExit(main())
