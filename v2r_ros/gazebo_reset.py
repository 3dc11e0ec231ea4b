"""Resets worlds/tabletop.sdf before an episode: a Trigger service for policy_node, Gazebo's own services behind it.

ros_gz_bridge carries the resets of a world under a type of its own, which policy_node does not know, so that something
has to stand in between. This does it with the `gz` program, which is there wherever Gazebo is.
"""

from __future__ import annotations

import subprocess
import time

import numpy as np
from rclpy.node import Node
from std_srvs.srv import Trigger

from v2r_ros import parameters
from v2r_ros.running import run

WORLD, BLOCK = "tabletop", "block"
AREA = ((0.08, 0.16), (-0.12, 0.12))
"""Where the block may stand at the start, in metres: x and y of its middle, between the pusher and the goal."""
BLOCK_Z = 0.78
TIMEOUT_S = 2.0
AGAIN_S = 0.5
"""A request that has waited while another was carried out is answered by that one."""


class GazeboReset(Node):
    """Offers `~/reset`: everything back to its start, time back to 0, and the block to a place drawn by the seed."""

    def __init__(self) -> None:
        super().__init__("gazebo_reset")
        parameters.declare(self, parameters.GAZEBO_RESET)
        self._seed: int = self.get_parameter("seed").value
        self._done_s, self._place = -AGAIN_S, ""
        self.create_service(Trigger, "~/reset", self._on_reset)

    def close(self) -> None:
        """Nothing to end."""

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        problem = "" if time.monotonic() - self._done_s < AGAIN_S else self._reset()
        if problem:
            self.get_logger().warning(problem)
        response.success, response.message = not problem, problem or self._place
        return response

    def _reset(self) -> str:
        x, y = block_place(self._seed)
        pose = f'name: "{BLOCK}", position: {{x: {x:.4f}, y: {y:.4f}, z: {BLOCK_Z}}}, orientation: {{w: 1}}'
        problem = call("control", "gz.msgs.WorldControl", "reset: {all: true}") or call(
            "set_pose", "gz.msgs.Pose", pose
        )
        if not problem:
            self._place = f"seed {self._seed}: the block is at x {x:.3f}, y {y:.3f}"
            self._seed, self._done_s = self._seed + 1, time.monotonic()
        return problem


def block_place(seed: int) -> tuple[float, float]:
    """x and y of the block in metres, uniform in `AREA`."""
    (x_low, x_high), (y_low, y_high) = AREA
    x, y = np.random.default_rng(seed).uniform((x_low, y_low), (x_high, y_high))
    return float(x), float(y)


def call(service: str, kind: str, request: str) -> str:
    """Calls a service of the world and says what went wrong, or nothing.

    Args:
        service: name below /world/tabletop.
        kind: type of the request; the answer is a gz.msgs.Boolean.
        request: in protobuf's text format.
    """
    name = f"/world/{WORLD}/{service}"
    command = ["gz", "service", "-s", name, "--reqtype", kind, "--reptype", "gz.msgs.Boolean"]
    command += ["--timeout", f"{TIMEOUT_S * 1000:.0f}", "--req", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False)
    except OSError as error:
        return f"gz cannot be run ({error}); install Gazebo Harmonic and source ROS's setup.bash"
    except subprocess.TimeoutExpired:
        return f"{name}: gz did not come back within {2 * TIMEOUT_S:.0f} s; is Gazebo running?"
    # gz ends with 0 whatever the answer is.
    if "data: true" in done.stdout:
        return ""
    said = " ".join((done.stdout + done.stderr).split()) or "nothing"
    return f"{name} did not do it: gz says {said[:300]}"


def main() -> int:
    """Entry point of `ros2 run v2r_ros gazebo_reset`."""
    return run(GazeboReset)


if __name__ == "__main__":
    raise SystemExit(main())
