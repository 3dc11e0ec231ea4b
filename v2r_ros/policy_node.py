"""The lifecycle node that moves a robot: camera and reward in, actions out, a stop whenever something is not well."""

from __future__ import annotations

import math
import signal
import threading
import time
from enum import Enum
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import uninstall_signal_handlers
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from v2r_core.deploy.pacing import Pacer
from v2r_core.video.resize import Frame
from v2r_msgs.msg import Episode, Reward
from v2r_ros import parameters
from v2r_ros.describe_policy import policy_diagnostics
from v2r_ros.driver import Done, Driver, Turn
from v2r_ros.episodes import END_NAMES, Beginning, EpisodeLog, nanoseconds
from v2r_ros.images import compressed_to_rgb, message_to_rgb
from v2r_ros.lifecycle import GuardedLifecycleNode
from v2r_ros.policy_parts import Parts, make_parts, subscribe_to_image, subscribe_to_reward
from v2r_ros.resets import ResetError
from v2r_ros.running import run
from v2r_ros.telemetry import Telemetry

WATCHDOG_S = 0.05
SETTLE_S = 1.0
"""For so long after the end of an episode the stop is repeated; then the action topic is free for others."""


class State(Enum):
    """What the node does while it is active."""

    DISABLED = "disabled"
    RESETTING = "resetting"
    WAITING = "waiting for image and reward"
    RUNNING = "running"


class PolicyNode(GuardedLifecycleNode):
    """Subscribes `image` and `reward`, publishes `~/action`, `~/episode` and `/diagnostics`.

    configure loads and checks the policy, activate subscribes; then `~/enable` lets the robot move, for one episode or,
    with auto_restart, for one after the other. The image callback only stores the newest image whose turn it is; one
    worker thread acts. A watchdog stops the robot without it. All states change in the executor's thread.
    """

    def __init__(self, node_name: str = "policy_node", **options: object) -> None:
        super().__init__(node_name, **options)
        parameters.declare(self, parameters.POLICY_NODE)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(lambda _: self._use_parameters())
        self._parts: Parts | None = None
        self._driver: Driver | None = None
        self._pacer = Pacer(1.0)
        self._telemetry = Telemetry()
        self._sources: list[Subscription] = []
        self._active = False
        self._state = State.DISABLED
        self._reason = ""
        self._log: EpisodeLog | None = None
        self._beginning = Beginning(None)
        self._count = 0
        self._image_s = math.nan
        self._settled_s = 0.0
        self._leaving = threading.Event()
        self._episodes = self.create_publisher(Episode, "~/episode", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/end_episode", self._on_end_episode)
        # A clock that never stands still, as simulated time may: a stop must not wait for it.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(WATCHDOG_S, self._watch, clock=steady)
        self.create_timer(self._parameter("diagnostics_period"), self._publish_diagnostics, clock=steady)

    # --- transitions -------------------------------------------------------------------------------------------------

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The robot does not move before `~/enable`, unless start_enabled."""
        result = super().on_activate(state)
        if result == TransitionCallbackReturn.SUCCESS and self._parameter("start_enabled"):
            self._restart()
        return result

    def _configure(self) -> None:
        self._parts = make_parts(self, self._values(), self._reset, self.complain)
        policy, rewarded = self._parts.policy, self._parameter("use_reward")
        self.get_logger().info(
            f"{policy.bundle.manifest.name}: {policy.action_dim} numbers at {policy.rate:.4g} Hz by {policy.provider}"
            f"{'' if rewarded else '; use_reward is false, so no reward stops the robot'}"
        )

    def _activate(self) -> None:
        parts, values = self._parts, self._values()
        assert parts is not None
        self._driver = Driver(parts.policy, parts.commander, self._decode, self._on_done, parts.recorder)
        self._use_parameters()
        self._pacer, self._telemetry = Pacer(1 / parts.policy.rate), Telemetry()
        self._state, self._count, self._log, self._image_s = State.DISABLED, 0, None, math.nan
        self._active = True
        self._beginning = Beginning(values["reward_timeout"] if values["use_reward"] else None)
        self._sources = [subscribe_to_image(self, values, self._on_image)]
        if values["use_reward"]:
            self._sources.append(subscribe_to_reward(self, values["reward_deadline"], parts.guard, self._on_reward))

    def _deactivate(self) -> None:
        self._disable("the node was deactivated")
        self._active = False
        for subscription in self._sources:
            self.destroy_subscription(subscription)
        self._sources.clear()
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _clean_up(self) -> None:
        self._deactivate()
        if self._parts is not None:
            self._parts.free(self)
            self._parts = None

    # --- what comes in -----------------------------------------------------------------------------------------------

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._image_s = time.monotonic()
        assert self._parts is not None and self._driver is not None
        moment = nanoseconds(message.header.stamp) or self._now_ns()
        if self._state is State.WAITING:
            if not self._beginning.image(self._image_s, moment):
                return
            self._begin(moment, message.header.frame_id)
        elif self._state is not State.RUNNING:
            return
        assert self._log is not None
        if back := self._log.gone_back(moment):
            if self._log.images > 2:
                self._end(Episode.END_FAULT, why=back)
                return
            self._log.start_anew(moment)  # the first image was a late one, of before a reset that put time back
            self._pacer.restart()
            self._parts.guard.begin(self._image_s)  # forgets that stamp, which all rewards would lie behind
        self._parts.guard.image(self._image_s, moment)
        if not self._pacer.due(moment):
            return
        last = self._log.too_long(moment, self._parameter("time_limit"))
        self._driver.mailbox.put(Turn(self._log.number, message, moment, last))
        if last:
            self._end(Episode.END_TIME_LIMIT, image_follows=True)

    def _on_reward(self, message: Reward) -> None:
        parts, log = self._parts, self._log
        assert parts is not None
        if parts.recorder is not None and message.status != Reward.STATUS_STALE_IMAGE:
            parts.recorder.reward(nanoseconds(message.header.stamp), message.reward)
        now = time.monotonic()
        if self._state is State.WAITING:
            self._beginning.add(now, message)
        if self._state is not State.RUNNING or log is None or not log.belongs(message):
            return
        parts.guard.reward(now, message.status, nanoseconds(message.header.stamp))
        if log.goal_changed(message):
            self._end(Episode.END_REQUESTED)
        elif log.add(message, self._parameter("success_progress"), self._parameter("success_frames")):
            self._end(Episode.END_SUCCESS)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success = self._active or not request.data
        if not self._active:
            response.message = "the node is not active; configure and activate it first" if request.data else "off"
        elif not request.data:
            self._disable("~/enable is off")
            response.message = "the robot stands still"
        else:
            if self._state is State.DISABLED:
                self._restart()
            response.message = f"state: {self._state.value}"
        return response

    def _on_end_episode(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._state is State.RUNNING and self._log is not None
        if response.success:
            response.message = f"episode {self._log.number} ends"
            self._end(Episode.END_REQUESTED)
        else:
            response.message = f"no episode is running; state: {self._state.value}"
        return response

    # --- episodes ----------------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        """Has everything reset for the next episode; the first image after that begins it."""
        assert self._parts is not None
        self._state = State.RESETTING
        self._parts.resets.start()
        self._reset()

    def _reset(self) -> None:
        if self._state is not State.RESETTING or self._parts is None:
            return
        try:
            if self._parts.resets.poll():
                self._state = State.WAITING
                self._beginning.start()
        except ResetError as error:
            self._state = State.DISABLED
            self.get_logger().error(f"no episode: {error}")

    def _begin(self, moment_ns: int, frame_id: str) -> None:
        assert self._parts is not None
        self._log = EpisodeLog(self._count, moment_ns, frame_id)
        self._count += 1
        self._pacer.restart()
        self._parts.commander.begin(self._log.number)
        if reward := self._beginning.reward:
            self._parts.guard.reward(self._beginning.arrived_s, reward.status, nanoseconds(reward.header.stamp))
        self._state = State.RUNNING

    def _end(self, reason: int, *, why: str = "", image_follows: bool = False, restart: bool = True) -> None:
        """Stops the robot, says what the episode came to and why, and begins the next one or waits to be enabled."""
        log = self._log
        assert log is not None and self._parts is not None and self._driver is not None
        self._parts.commander.end()
        self._settled_s = time.monotonic() + SETTLE_S
        self._reason = ""
        summary = log.message(reason, self._now_ns())
        notes = {"end_reason": reason, "return_sum": log.return_sum}
        self._driver.end(log.number, notes, image_follows=image_follows)
        self._episodes.publish(summary)
        self.get_logger().info(
            f"episode {log.number}: {END_NAMES[reason]}{why and f' ({why})'} after {summary.duration.sec} s, progress "
            f"{summary.final_progress:.2f}, return {summary.return_sum:.3f}"
        )
        self._state = State.DISABLED
        if restart and reason != Episode.END_FAULT and self._parameter("auto_restart"):
            self._restart()

    def _disable(self, why: str) -> None:
        if self._state is State.RUNNING:
            self.get_logger().info(f"the robot stops: {why}")
            self._end(Episode.END_REQUESTED, restart=False)
        elif self._active and self._parts is not None:
            self._parts.commander.stop()
            self._settled_s = time.monotonic() + SETTLE_S
        self._state = State.DISABLED

    # --- what goes out -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Twenty times a second: stops the robot if it may not move, whatever the other threads do."""
        if self._leaving.is_set():
            self._clean_up()
            rclpy.try_shutdown(context=self.context)
            return
        self._reset()
        if self._parts is None:
            return
        if self._state is State.RUNNING:
            self._reason = self._parts.commander.check()
            if self._reason:
                self.complain(f"the robot stands still: {self._reason}")
                if self._parts.guard.stopped_for(time.monotonic()) > self._parameter("fault_timeout"):
                    self._end(Episode.END_FAULT, why=self._reason)
        elif self._state is State.DISABLED and time.monotonic() < self._settled_s:
            self._parts.commander.stop()
        elif self._state is State.WAITING and self._beginning.overdue(time.monotonic()):
            self._parts.commander.stop_anew()  # whoever waits for an action before showing more gets this one

    def _on_done(self, done: Done) -> None:
        now = self._now_ns()
        seconds = (now - done.moment_ns) * 1e-9
        if done.problem:
            self._telemetry.internal_errors += 1
            self.complain(done.problem)
        else:
            self._telemetry.add(now * 1e-9, seconds if seconds >= 0 else math.nan, done.inference_ms)

    def _publish_diagnostics(self) -> None:
        status = policy_diagnostics(
            self.get_fully_qualified_name(),
            self._state.value if self._active else "inactive" if self._parts is not None else "unconfigured",
            self._parts,
            self._telemetry,
            self._driver.mailbox.dropped if self._driver is not None else 0,
            self._reason,
            episode=self._count - 1,
            now=self._now_ns() * 1e-9,
            image_age=time.monotonic() - self._image_s,
            max_latency=self._parameter("max_latency"),
            too_slow=self._pacer.too_slow,
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stops the robot and then ends the process; may be called from a signal handler."""
        self._leaving.set()

    def _decode(self, message: Image | CompressedImage) -> Frame:
        pixels = self._parameter("max_pixels")
        if isinstance(message, CompressedImage):
            return compressed_to_rgb(message, self._parameter("max_compressed_bytes"), pixels)
        return message_to_rgb(message, pixels)

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        return parameters.check_change(parameters.POLICY_NODE, changes, configured=self._parts is not None)

    def _use_parameters(self) -> None:
        if self._driver is not None:
            self._driver.noise_std = self._parameter("noise_std")

    def _values(self) -> dict[str, Any]:
        return {spec.name: self._parameter(spec.name) for spec in parameters.POLICY_NODE}

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def _make() -> PolicyNode:
    """The node, which on SIGINT or SIGTERM stops the robot first: rclpy's own handlers end the context at once."""
    node = PolicyNode()
    uninstall_signal_handlers()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: node.leave())
    return node


def main() -> int:
    """Entry point of `ros2 run v2r_ros policy_node`."""
    return run(_make)


if __name__ == "__main__":
    raise SystemExit(main())
