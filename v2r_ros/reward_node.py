"""The lifecycle node that turns a camera topic into a stream of rewards."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

import v2r_core
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.overlay import draw_overlay
from v2r_core.video.resize import Frame
from v2r_msgs.msg import Reward, RewardInfo
from v2r_ros import parameters, qos
from v2r_ros.describe import diagnostics, reward_info
from v2r_ros.goal_server import GoalServer
from v2r_ros.goals import bundle_targets, is_video
from v2r_ros.images import compressed_to_rgb, message_to_rgb, rgb_to_message
from v2r_ros.lifecycle import GuardedLifecycleNode
from v2r_ros.mailbox import Mailbox
from v2r_ros.running import run
from v2r_ros.scoring import Images, MessageScorer, latency
from v2r_ros.telemetry import Telemetry


class RewardNode(GuardedLifecycleNode):
    """Subscribes `image`, publishes `~/reward`, `~/info`, `~/overlay` and `/diagnostics`.

    configure loads and checks the model, activate subscribes. The image callback only stores the newest message; one
    worker thread scores. Goals are encoded in a third thread, so that neither ever waits for a goal.
    """

    def __init__(self, node_name: str = "reward_node", **options: object) -> None:
        super().__init__(node_name, **options)
        parameters.declare(self, parameters.REWARD_NODE)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._use_parameters)
        self._timeout_ns = int(self._parameter("image_timeout") * 1e9)
        self._scorer: MessageScorer | None = None
        self._cameras: list[str] = self._parameter("cameras")
        if len(set(self._cameras)) < len(self._cameras) or (len(self._cameras) > 1 and "" in self._cameras):
            raise ValueError(f"cameras is {self._cameras}; give every camera a name of its own")
        self._mailbox: Mailbox[Images] = Mailbox()
        self._worker: threading.Thread | None = None
        self._telemetry = Telemetry()
        self._image_subscriptions: list[Subscription] = []
        self._newest: list[Image | CompressedImage | None] = [None] * len(self._cameras)
        self._last_arrival_ns = self._last_stale_ns = 0
        self._active = False
        self._busy_since_ns = 0
        self._rewards = self.create_lifecycle_publisher(
            Reward, "~/reward", qos.reward_publisher(self._timeout_ns * 1e-9)
        )
        self._overlays = self.create_lifecycle_publisher(Image, "~/overlay", qos.image_publisher())
        self._info = self.create_publisher(RewardInfo, "~/info", qos.latched())
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._goals = GoalServer(
            self,
            Path(self._parameter("goals_dir") or v2r_core.CLIPS).expanduser(),
            self._decode,
            self._newest_view,
            self._publish_info,
        )
        self.create_timer(self._timeout_ns * 0.25e-9, self._check_camera)
        self.create_timer(self._parameter("diagnostics_period"), self._publish_diagnostics)

    # --- transitions -------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        model = self._parameter("model") or str(v2r_core.DEFAULT_BUNDLE)
        bundle = load_bundle(model)
        precision = self._parameter("precision")
        scorer = Scorer(
            bundle,
            reward=self._parameter("reward") or None,
            precision=None if precision == "auto" else precision,
            providers=self._parameter("providers"),
            threads=self._parameter("threads"),
            parameters={} if len(self._cameras) == 1 else {"cameras": self._parameter("camera_rule")},
            cameras=len(self._cameras),
            paced=True,
        )
        milliseconds = scorer.session.warm_up()
        new = MessageScorer(
            scorer,
            self._decode,
            goal_source="bundle" if scorer.goal else "",
            max_stamp_future=self._parameter("max_stamp_future"),
            max_gap=self._timeout_ns * 1e-9,
            cameras=self._cameras,
            max_skew=self._parameter("max_camera_skew"),
            targets=bundle_targets(bundle.path, scorer.goal) if scorer.goal else (),
        )
        new.set_scale(self._parameter("reward_scale"), self._parameter("reward_clip"))
        if uri := self._parameter("goal"):
            made = self._goals.from_uri(scorer, uri, subgoals=scorer.reward_name == "uvd" and is_video(uri))
            new.set_goal(made.goal, uri, targets=made.targets)
        self._scorer = new
        self._publish_info()
        self._goals.begin(new)
        self.get_logger().info(
            f"{bundle.manifest.name}: {scorer.session.provider} in {scorer.session.precision}, "
            f"{milliseconds:.1f} ms a frame, goal {scorer.goal.name if scorer.goal else 'not set yet'}"
        )

    def _activate(self) -> None:
        assert self._scorer is not None
        self._scorer.begin()
        self._mailbox, self._telemetry = Mailbox(), Telemetry()
        self._newest = [None] * len(self._cameras)
        self._last_arrival_ns = self._last_stale_ns = self._now_ns()
        raw = self._parameter("image_transport") == "raw"
        self._worker = threading.Thread(target=self._work, args=(self._mailbox,), name="scoring", daemon=True)
        self._worker.start()
        self._active = True
        for number, camera in enumerate(self._cameras):
            topic = f"{camera}/image" if camera else "image"
            self._image_subscriptions.append(
                self.create_subscription(
                    Image if raw else CompressedImage,
                    topic if raw else f"{topic}/compressed",
                    partial(self._on_image, number),
                    qos.image_subscription(self._parameter("image_qos")),
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
            )

    def _deactivate(self) -> None:
        self._active = False
        for subscription in self._image_subscriptions:
            self.destroy_subscription(subscription)
        self._image_subscriptions.clear()
        self._mailbox.close()
        if self._worker is not None:
            self._worker.join(timeout=1.0)
            self._worker = None
        self._newest = [None] * len(self._cameras)  # nobody knows what is there by the time it goes on

    def _clean_up(self) -> None:
        self._deactivate()
        self._goals.end()
        self._scorer = None

    def close(self) -> None:
        """Ends the threads; for the end of the process."""
        super().close()
        self._goals.close()

    # --- frames ------------------------------------------------------------------------------------------------------

    def _on_image(self, camera: int, message: Image | CompressedImage) -> None:
        self._newest[camera] = message
        if camera:  # only the first camera sets the pace
            return
        self._last_arrival_ns = self._now_ns()
        if self._scorer is None:
            return
        if not self._scorer.due(message, self._last_arrival_ns):
            self._telemetry.left_out += 1
            return
        self._mailbox.put(tuple(self._newest))
        # Leaves the interpreter to the worker until it is inside resizing and inference, which need none; otherwise it
        # competes with this thread, which builds its next wait set, for a millisecond of latency.
        time.sleep(0.003)

    def _newest_view(self) -> tuple[Images, float]:
        """The newest message of each camera, and the seconds since that of the first one arrived."""
        return tuple(self._newest), max(0, self._now_ns() - self._last_arrival_ns) * 1e-9

    def _work(self, mailbox: Mailbox[Images]) -> None:
        while (images := mailbox.take()) is not None:
            scorer = self._scorer
            if scorer is None:
                return
            self._busy_since_ns = self._now_ns()
            scored = scorer.score(images, self._busy_since_ns, mailbox.dropped)
            self._busy_since_ns = 0
            if mailbox.closed:
                return
            reward = scored.message
            now_ns = self._now_ns()
            seconds = latency(reward, now_ns)
            try:
                self._rewards.publish(reward)
                self._telemetry.add(now_ns * 1e-9, seconds, reward.inference_ms)
                if scored.frame is not None and self._overlays.get_subscription_count():
                    overlay = rgb_to_message(_overlay(scored.frame, reward, scored.target))
                    overlay.header = reward.header
                    self._overlays.publish(overlay)
            except Exception as error:  # the context may be gone in the middle of a shutdown
                if rclpy.ok(context=self.context):
                    self.complain(f"publishing failed: {error}")
            if reward.status == Reward.STATUS_BAD_IMAGE:
                self._telemetry.bad_images += 1
            elif reward.status == Reward.STATUS_INTERNAL_ERROR:
                self._telemetry.internal_errors += 1
            if scored.problem:
                self.complain(scored.problem)

    def _decode(self, message: Image | CompressedImage) -> Frame:
        pixels = self._parameter("max_pixels")
        if isinstance(message, CompressedImage):
            return compressed_to_rgb(message, self._parameter("max_compressed_bytes"), pixels)
        return message_to_rgb(message, pixels)

    def _check_camera(self) -> None:
        """Says at least once every image_timeout that there is no camera; silence is not a status."""
        now = self._now_ns()
        # Simulated time may have gone back behind either.
        self._last_arrival_ns, self._last_stale_ns = min(self._last_arrival_ns, now), min(self._last_stale_ns, now)
        quiet = now - max(self._last_arrival_ns, self._last_stale_ns)
        if not self._active or self._scorer is None or quiet < self._timeout_ns:
            return
        self._last_stale_ns = now
        header = self._newest[0].header if self._newest[0] else Header(stamp=self.get_clock().now().to_msg())
        reward = self._scorer.stale(header, self._mailbox.dropped)
        latency(reward, now)
        self._rewards.publish(reward)
        topic = self._image_subscriptions[0].topic_name if self._image_subscriptions else "image"
        self.complain(
            f"no image on {topic} for {(now - self._last_arrival_ns) * 1e-9:.1f} s; is the camera running, "
            f"and are topic and QoS right (ros2 topic info -v {topic})?",
        )

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._scorer is None:
            response.success, response.message = False, "the node is not configured; configure it first"
        else:
            self._scorer.reset()
            response.success, response.message = True, f"episode {self._scorer.episode} begins"
        return response

    # --- what is said about the stream -------------------------------------------------------------------------------

    def _publish_info(self) -> None:
        assert self._scorer is not None
        info = reward_info(self._scorer, self._parameter("reward_scale"), self._parameter("reward_clip"))
        info.header.stamp = self.get_clock().now().to_msg()
        self._info.publish(info)

    def _publish_diagnostics(self) -> None:
        now, started = self._now_ns(), self._busy_since_ns
        status = diagnostics(
            self.get_fully_qualified_name(),
            self._scorer,
            self._active,
            self._telemetry,
            self._mailbox,
            now=now * 1e-9,
            image_age=(now - self._last_arrival_ns) * 1e-9 if self._newest[0] else float("nan"),
            busy_for=(now - started) * 1e-9 if started else 0.0,
            image_timeout=self._timeout_ns * 1e-9,
            max_latency=self._parameter("max_latency"),
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    # --- parameters and time -----------------------------------------------------------------------------------------

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        return parameters.check_change(parameters.REWARD_NODE, changes, configured=self._scorer is not None)

    def _use_parameters(self, changes: list[Parameter]) -> None:
        if self._scorer is None:
            return
        names = {change.name for change in changes}
        if names & {"reward_scale", "reward_clip"}:
            self._scorer.set_scale(self._parameter("reward_scale"), self._parameter("reward_clip"))
            self._publish_info()
        self._scorer.set_max_stamp_future(self._parameter("max_stamp_future"))

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def _overlay(frame: Frame, reward: Reward, target: Frame | None) -> Frame:
    return draw_overlay(
        frame,
        reward=reward.reward,
        progress=reward.progress,
        value=reward.value,
        subgoal_index=reward.subgoal_index,
        subgoal_count=reward.subgoal_count,
        status=Status(reward.status).name.lower(),
        target=target,
    )


def main() -> int:
    """Entry point of `ros2 run v2r_ros reward_node`."""
    return run(RewardNode)


if __name__ == "__main__":
    raise SystemExit(main())
