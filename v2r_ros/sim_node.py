"""A simulated task behind ROS: a camera and an actuator, as a robot has them, and the truth about success."""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Bool, Float64MultiArray, Header
from std_srvs.srv import Trigger

from v2r_core.rl.envs import PixelEnv, make_env
from v2r_msgs.msg import Reward
from v2r_ros import parameters, qos
from v2r_ros.episodes import nanoseconds
from v2r_ros.images import camera_info, rgb_to_message
from v2r_ros.running import Job, run
from v2r_ros.simulator import Pace, Simulator, View
from v2r_ros.throttle import Throttle


class SimNode(Node):
    """Publishes `camera/image`, `camera/camera_info`, `~/success` and `/clock`; subscribes `action`; offers `~/reset`.

    An action is a std_msgs/Float64MultiArray with the environment's numbers in [-1, 1]. In lockstep the node also hears
    `reward`: the next image waits for the action on the last one and for its reward.
    """

    def __init__(self) -> None:
        super().__init__("sim_node")
        parameters.declare(self, parameters.SIM_NODE)
        self._complain = Throttle(self.get_logger().warning)
        self._simulated_time: bool = self._parameter("simulated_time")
        pace = Pace(self._parameter("speed"), self._parameter("lockstep"), self._parameter("action_timeout"))
        if pace.speed == 0 and not self._simulated_time:
            raise ValueError("speed is 0 but simulated_time is off: stamps would not tell the pace; change one of them")
        self._frame_id: str = self._parameter("frame_id")
        self._clock_time = self.create_publisher(Clock, "/clock", 10) if self._simulated_time else None
        self._images = self.create_publisher(ImageMessage, "camera/image", qos.image_publisher())
        self._camera_infos = self.create_publisher(CameraInfo, "camera/camera_info", qos.image_publisher())
        self._success = self.create_publisher(Bool, "~/success", 10)
        self._simulator = Simulator(
            self._make, self._parameter("seed"), pace, self._show, self._tick, Throttle(self.get_logger().error)
        )
        self.create_subscription(Float64MultiArray, "action", self._on_action, qos.command())
        if pace.lockstep:
            self.create_subscription(Reward, "reward", self._on_reward, 10)
        self._wake = self.create_guard_condition(lambda: None)
        # A group of its own: actions go on arriving while a reset takes its time.
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=group)
        self.get_logger().info(f"{self._parameter('env')}: {self._simulator.action_dim} numbers an action")

    def close(self) -> None:
        """Ends the simulation."""
        self._simulator.close()

    def _make(self) -> PixelEnv:
        return make_env(
            self._parameter("env"),
            size=self._parameter("size"),
            action_repeat=self._parameter("action_repeat"),
            horizon=self._parameter("horizon") or None,
        )

    def _on_action(self, message: Float64MultiArray) -> None:
        try:
            self._simulator.act(np.asarray(message.data, np.float32))
        except ValueError as error:
            self._complain(f"ignored: {error}")

    def _on_reward(self, message: Reward) -> None:
        if message.status != Reward.STATUS_STALE_IMAGE:  # that one answers no image
            self._simulator.rewarded(nanoseconds(message.header.stamp))

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        job: Job[tuple[str, str]] = Job(self._wake.trigger)
        self._simulator.reset(lambda text, problem: job.finish((text, problem)))
        text, problem = await job
        response.success, response.message = not problem, problem or text
        return response

    def _show(self, view: View) -> int:
        self._tick(view.time_ns)
        stamp = Time(nanoseconds=view.time_ns) if self._simulated_time else self.get_clock().now()
        try:
            image = rgb_to_message(view.frame)
            image.header = Header(stamp=stamp.to_msg(), frame_id=self._frame_id)
            height, width = view.frame.shape[:2]
            self._images.publish(image)
            self._camera_infos.publish(camera_info(image.header, width, height, view.focal_length))
            self._success.publish(Bool(data=view.success))
        except Exception as error:
            self._failed(error)
        return int(stamp.nanoseconds)

    def _tick(self, time_ns: int) -> None:
        if self._clock_time is None:
            return
        try:
            self._clock_time.publish(Clock(clock=Time(nanoseconds=time_ns).to_msg()))
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.context.ok():  # it may be gone in the middle of a shutdown
            self._complain(f"publishing failed: {error}")

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value


def main() -> int:
    """Entry point of `ros2 run v2r_ros sim_node`."""
    return run(SimNode)


if __name__ == "__main__":
    raise SystemExit(main())
