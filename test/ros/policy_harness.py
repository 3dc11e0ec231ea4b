"""A policy_node process under test, with camera, reward and ears in this process."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import SetBool, Trigger
from tiny_policy import blob

from v2r_msgs.msg import Episode, Reward
from v2r_ros import qos
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph, GraphError
from v2r_ros.images import rgb_to_message
from v2r_ros.scoring import blank_reward

PERIOD = 0.05
OFFERED_S = 0.4
FAR = blob(-0.6, 0.5)


class PolicyUnderTest:
    """Starts policy_node and, while it waits for something, is camera and reward_node for it.

    Attributes:
        actions, episodes, diagnostics: messages in the order of their arrival.
        frame: what the camera sees.
        camera_on, reward_on: whether they publish.
        status, progress: of the rewards.
        clock_s, reward_age_s: seconds added to all stamps, and by which a reward's stamp is older than its image's.
        images, rewards: what was published.
    """

    def __init__(
        self,
        graph: Graph,
        kind: type = Float64MultiArray,
        module: str = "v2r_ros.policy_node",
        reward: str = "/reward",
        **parameters: object,
    ) -> None:
        self.graph = graph
        self.actions: list = []
        self.episodes: list[Episode] = []
        self.diagnostics: list[DiagnosticStatus] = []
        self.frame, self.status, self.progress = FAR, Reward.STATUS_OK, 0.5
        self.camera_on = self.reward_on = True
        self.clock_s = self.reward_age_s = 0.0
        self.images: list[Image] = []
        self.rewards: list[Reward] = []
        self.resets = 0
        self._next = 0.0
        node = graph.node
        node.create_subscription(kind, "/policy_node/action", self.actions.append, 100)
        node.create_subscription(Episode, "/policy_node/episode", self.episodes.append, 10)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        node.create_service(Trigger, "/reward_node/reset", self._on_reset)
        self.camera = node.create_publisher(Image, "/image", qos.image_publisher())
        self.reward = node.create_publisher(Reward, "/reward", qos.reward_publisher(OFFERED_S / 2))
        given = {"diagnostics_period": 0.2, "providers": ["cpu"]} | parameters
        self.process = graph.start(module, given, "policy_node", "-r", f"reward:={reward}")

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.diagnostics += [status for status in message.status if "policy_node" in status.name]

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.resets += 1
        response.success = True
        return response

    def configure(self) -> bool:
        """Asks for the transition and says whether it was made."""
        return self.graph.transition("/policy_node", CONFIGURE)

    def start(self) -> PolicyUnderTest:
        """Configures and activates, and waits until everybody hears everybody."""
        assert self.configure(), self.log()
        assert self.graph.transition("/policy_node", ACTIVATE), self.log()
        self.graph.spin(lambda: self.camera.get_subscription_count() > 0, 15.0, "the camera to be heard")
        self.graph.spin(lambda: self.graph.node.count_publishers("/policy_node/action") > 0, 15.0, "the actions")
        return self

    def enable(self, on: bool = True) -> SetBool.Response:
        """Calls ~/enable."""
        return self.graph.call(SetBool, "/policy_node/enable", SetBool.Request(data=on))

    def wait(self, condition: Callable[[], bool], timeout: float = 15.0, what: str = "a condition") -> None:
        """Publishes images and rewards at 20 Hz until it holds."""

        def publish() -> bool:
            now = time.monotonic()
            if now >= self._next:
                self._next = max(self._next + PERIOD, now)
                self.publish()
            return condition()

        try:
            self.graph.spin(publish, timeout, what)
        except GraphError as error:
            raise GraphError(f"{error}\n{self.reason()}\n{self.log()}") from error

    def publish(self) -> None:
        """Publishes an image and its reward, if they are on."""
        message = rgb_to_message(self.frame)
        message.header.frame_id = "camera"
        now = time.time() + self.clock_s
        message.header.stamp = stamp(now)
        if self.camera_on:
            self.camera.publish(message)
            self.images.append(message)
        if self.reward_on:
            reward = blank_reward(Header(stamp=stamp(now - self.reward_age_s), frame_id="camera"))
            reward.status, reward.goal_id = self.status, "toy"
            if self.status == Reward.STATUS_OK:
                reward.reward, reward.value, reward.progress = 0.25, -1.0, self.progress
            self.reward.publish(reward)
            self.rewards.append(reward)

    def until_moving(self) -> None:
        """Waits for an action that moves."""
        seen = len(self.actions)
        self.wait(lambda: any(moves(action) for action in self.actions[seen:]), what="a motion")

    def until_stopped(self) -> float:
        """Waits until no motion has come for 0.3 s and the last action was zero; seconds to the first zero."""
        start, seen = time.monotonic(), len(self.actions)
        first: list[float] = []

        def stopped() -> bool:
            new = self.actions[seen:]
            if new and not moves(new[-1]):
                first[:] = first or [time.monotonic()]
            else:
                first.clear()
            return bool(first) and time.monotonic() - first[0] > 0.3

        self.wait(stopped, what="the robot to stop")
        return first[0] - start

    def reason(self) -> str:
        """Why the robot stands still, from diagnostics."""
        return self.value("standing still")

    def value(self, key: str) -> str:
        """A value of the newest diagnostics; empty if there is none."""
        values = {pair.key: pair.value for pair in self.diagnostics[-1].values} if self.diagnostics else {}
        return values.get(key, "")

    def log(self) -> str:
        """What the node printed."""
        return self.graph.log("policy_node")

    def stop(self) -> None:
        """Ends the node, which must end well."""
        assert self.graph.stop("policy_node") == {"policy_node": 0}, self.log()
        assert "Traceback" not in self.log(), self.log()


def moves(action: Float64MultiArray) -> bool:
    """Whether any number of it is not 0."""
    return bool(np.any(np.asarray(action.data) != 0))


def stamp(seconds: float) -> Time:
    """A moment as a message has it."""
    return Time(sec=int(seconds), nanosec=int(seconds % 1 * 1e9))
