"""The ways in which a goal reaches the node: parameter, ~/set_goal, ~/goal_image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from v2r_core.deploy.cameras import PLACEHOLDER
from v2r_core.deploy.stream import Scorer
from v2r_core.overlay import small_target
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame
from v2r_msgs.srv import SetGoal
from v2r_ros import qos
from v2r_ros.goals import GoalError, MadeGoal, goal_from_files, goal_targets, resolve_goal
from v2r_ros.running import Job
from v2r_ros.scoring import Images, MessageScorer
from v2r_ros.throttle import Throttle

Request, Response = SetGoal.Request, SetGoal.Response


class GoalServer:
    """Encodes goals in a thread of its own, so that neither camera nor service calls ever wait for one another.

    The goal in force changes only at the very end, when the new one is encoded and fits.
    """

    def __init__(
        self,
        node: LifecycleNode,
        goals_dir: Path,
        decode: Callable[[Image | CompressedImage], Frame],
        scorer: Callable[[], MessageScorer | None],
        newest: Callable[[], Images],
        on_change: Callable[[], None],
    ) -> None:
        """Serves goals for a node.

        Args:
            node: gives logger and parameters, and gets the service and the subscription if goal_services is on.
            goals_dir: the only folder that plain file names reach.
            decode: image message to RGB; raises ImageError.
            scorer: the scorer of the moment; None while the node is not configured.
            newest: the newest message of each camera.
            on_change: called in the goal thread after a goal came into force.
        """
        self._node, self._goals_dir, self._decode = node, goals_dir, decode
        self._scorer, self._newest, self._on_change = scorer, newest, on_change
        self._names: list[str] = node.get_parameter("cameras").value
        self._cameras = len(self._names)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="goal")
        self._complain = Throttle(node.get_logger().warning, period=1.0)
        # A group of its own: a service call that waits for its goal must not hold up cameras and timers.
        group = MutuallyExclusiveCallbackGroup()
        self._wake = node.create_guard_condition(lambda: None)
        if node.get_parameter("goal_services").value:
            node.create_service(SetGoal, "~/set_goal", self._on_set_goal, callback_group=group)
            node.create_subscription(Image, "~/goal_image", self._on_goal_image, qos.latched(), callback_group=group)

    def close(self) -> None:
        """Lets the thread end after the goal at hand."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def from_uri(self, scorer: Scorer, uri: str, subgoals: bool) -> MadeGoal:
        """A goal out of a file, or of one of each camera where the name has `{camera}` in it. Raises GoalError."""
        if self._cameras > 1 and PLACEHOLDER not in uri:
            where = f"write {PLACEHOLDER} where the camera's name belongs"
            text = f"{uri!r} is one file for {self._cameras} cameras; {where}"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        files = [resolve_goal(uri.replace(PLACEHOLDER, name), self._goals_dir) for name in self._names]
        limits = [self._node.get_parameter(n).value for n in ("max_compressed_bytes", "max_pixels", "max_goal_frames")]
        goal = goal_from_files(scorer, files, *limits, subgoals)
        return MadeGoal(goal, uri, goal_targets(goal, files[0], *limits[:2]))

    async def _on_set_goal(self, request: Request, response: Response) -> Response:
        job: Job[Response] = Job(self._wake.trigger)
        self._thread.submit(lambda: job.finish(self._answer(request, response)))
        return await job

    def _on_goal_image(self, message: Image) -> None:
        def make(scorer: Scorer) -> MadeGoal:
            return _from_view(scorer, (self._single(message),), "goal_image")

        self._thread.submit(lambda: self._set(make, Response(), new_episode=False))

    def _answer(self, request: Request, response: Response) -> Response:
        return self._set(lambda scorer: self._requested(scorer, request), response, request.reset_episode)

    def _set(self, make: Callable[[Scorer], MadeGoal], response: Response, new_episode: bool) -> Response:
        response.initial_distance = float("nan")
        holder = self._scorer()
        try:
            if holder is None:
                raise GoalError(Response.RESULT_WRONG_STATE, "the node is not configured; configure it first")
            if not holder.scorer.reward.needs_goal:
                text = f"the reward {holder.scorer.reward_name} takes no goal; configure the node with another reward"
                raise GoalError(Response.RESULT_WRONG_STATE, text)
            made = make(holder.scorer)
            goal = made.goal
            response.initial_distance = holder.set_goal(goal, made.source, new_episode, made.targets)
            response.result = Response.RESULT_SUCCESS
            response.message = f"goal {goal.name} is in force, subgoals: {len(goal.milestones)}"
            self._on_change()
            self._node.get_logger().info(response.message)
        except GoalError as error:
            response.result, response.message = error.result, str(error)
        except Exception as error:  # whatever a file or a model does, the node and its old goal stay
            response.result = Response.RESULT_UNDEFINED_FAILURE
            response.message = f"{type(error).__name__}: {error}"
        if response.result != Response.RESULT_SUCCESS:
            self._complain(f"goal refused: {response.message}")
        goal_now = holder.scorer.goal if holder else None
        response.goal_id = goal_now.name if goal_now else ""
        return response

    def _requested(self, scorer: Scorer, request: Request) -> MadeGoal:
        if request.camera:
            text = f"camera is {request.camera!r}, but a goal is always for all cameras; leave the field empty"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        if request.source == Request.FROM_IMAGE:
            return _from_view(scorer, (self._single(request.image),), "image")
        if request.source == Request.FROM_CURRENT_FRAME:
            newest = self._newest()
            if None in newest:
                raise GoalError(Response.RESULT_NOT_FOUND, "no camera frame has arrived; activate the node first")
            view = tuple(self._pixels(message) for message in newest if message is not None)
            return _from_view(scorer, view, "current_frame")
        if request.source not in (Request.FROM_FILE, Request.FROM_VIDEO_SUBGOALS):
            text = f"source is {request.source}; use one of the FROM_ constants of v2r_msgs/srv/SetGoal"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        subgoals = request.source == Request.FROM_VIDEO_SUBGOALS
        if subgoals and scorer.reward_name != "uvd":
            text = f"the reward {scorer.reward_name} has no subgoals; configure the node with reward:=uvd"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        return self.from_uri(scorer, request.uri, subgoals)

    def _single(self, message: Image | CompressedImage) -> Frame:
        if self._cameras > 1:
            files = f"files with {PLACEHOLDER} in their name"
            text = f"one image for {self._cameras} cameras; use the current frame, or {files}"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        return self._pixels(message)

    def _pixels(self, message: Image | CompressedImage) -> Frame:
        try:
            return self._decode(message)
        except ImageError as error:
            raise GoalError(Response.RESULT_INVALID_IMAGE, str(error)) from error


def _from_view(scorer: Scorer, view: tuple[Frame, ...], name: str) -> MadeGoal:
    """A goal out of one image of each camera."""
    return MadeGoal(scorer.goal_from_frames([view], name), name, (small_target(view[0]),))
