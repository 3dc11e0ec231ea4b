"""The ways in which a goal reaches the node: parameter, ~/set_goal, ~/goal_image."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from v2r_core.deploy.cameras import PLACEHOLDER, UnpairedError
from v2r_core.deploy.goals import GOAL_SUFFIX, frames_goal_name
from v2r_core.deploy.judging import subgoal_count
from v2r_core.deploy.stream import Scorer
from v2r_core.overlay import small_target
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame
from v2r_msgs.srv import SetGoal
from v2r_ros import qos
from v2r_ros.goals import GoalError, MadeGoal, goal_from_files, goal_targets, resolve_goal
from v2r_ros.mailbox import Mailbox
from v2r_ros.running import Job
from v2r_ros.scoring import Images, MessageScorer
from v2r_ros.throttle import Throttle

Request, Response = SetGoal.Request, SetGoal.Response


class GoalServer:
    """Encodes goals in a thread of its own, so that neither camera nor service calls ever wait for one another.

    The goal in force changes only at the very end, when the new one is encoded and fits, and only that of the scorer
    that it was encoded for. Of goal images only the newest one waits; of requests there is one at a time.
    """

    def __init__(
        self,
        node: LifecycleNode,
        goals_dir: Path,
        decode: Callable[[Image | CompressedImage], Frame],
        newest: Callable[[], tuple[Images, float]],
        on_change: Callable[[], None],
    ) -> None:
        """Serves goals for a node.

        Args:
            node: gives logger and parameters, and gets the service if goal_services is on.
            goals_dir: the only folder that plain file names reach.
            decode: image message to RGB; raises ImageError.
            newest: the newest message of each camera, and the seconds since that of the first one arrived.
            on_change: called in the goal thread after a goal came into force.
        """
        self._node, self._goals_dir, self._decode = node, goals_dir, decode
        self._newest, self._on_change = newest, on_change
        self._names: list[str] = node.get_parameter("cameras").value
        self._cameras = len(self._names)
        self._holder: MessageScorer | None = None
        self._swap = threading.Lock()
        self._closed = False
        self._images: Mailbox[Image] = Mailbox()
        self._subscription: Subscription | None = None
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        # A daemon, or the end of the process would wait for whatever it is doing.
        self._thread = threading.Thread(target=self._work, name="goal", daemon=True)
        self._thread.start()
        self._complain = Throttle(node.get_logger().warning, period=1.0)
        # A group of its own: a service call that waits for its goal must not hold up cameras and timers.
        self._group = MutuallyExclusiveCallbackGroup()
        self._wake = node.create_guard_condition(lambda: None)
        self._offered: bool = node.get_parameter("goal_services").value
        if self._offered:
            node.create_service(SetGoal, "~/set_goal", self._on_set_goal, callback_group=self._group)

    def begin(self, holder: MessageScorer) -> None:
        """Sets goals of this scorer from now on; for the end of configuration.

        Only now `~/goal_image` is heard: it is latched, so what was sent before arrives.
        """
        self._holder = holder
        if self._offered:
            self._subscription = self._node.create_subscription(
                Image, "~/goal_image", self._on_goal_image, qos.latched(), callback_group=self._group
            )

    def end(self) -> None:
        """Sets no more goals; one that is being encoded is given up."""
        self._holder = None
        if self._swap.acquire(
            timeout=1.0
        ):  # a goal that is being put in force; an inference that hangs is not waited for
            self._swap.release()
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def close(self) -> None:
        """Ends the thread; it looks with each frame of a video whether it is to end."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout=1.0)

    def from_uri(self, scorer: Scorer, uri: str, subgoals: bool, check: Callable[[], object] | None = None) -> MadeGoal:
        """A goal out of a file, or of one of each camera where the name has `{camera}` in it. Raises GoalError.

        A saved goal is one file for all cameras. `check` is called with each frame of a video, and what it raises
        ends the work; by default it is the end of the process that does.
        """
        saved = uri.lower().endswith(GOAL_SUFFIX)
        if self._cameras > 1 and PLACEHOLDER not in uri and not saved:
            where = f"write {PLACEHOLDER} where the camera's name belongs"
            text = f"{uri!r} is one file for {self._cameras} cameras; {where}"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        files = [resolve_goal(uri.replace(PLACEHOLDER, name), self._goals_dir) for name in self._names]
        limits = [self._node.get_parameter(n).value for n in ("max_compressed_bytes", "max_pixels", "max_goal_frames")]
        check = check or self._check_running
        goal = goal_from_files(scorer, files, *limits, subgoals, check)
        return MadeGoal(goal, uri, goal_targets(goal, files[0], *limits[:2], check))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            try:
                job()
            except Exception as error:  # the context may be gone in the middle of a shutdown
                if self._node.context.ok():
                    self._complain(f"answering failed: {error}")

    def _check_running(self) -> None:
        if self._closed or not self._node.context.ok():
            raise GoalError(Response.RESULT_WRONG_STATE, "the node is ending")

    def _check_holder(self, holder: MessageScorer) -> None:
        """Raises GoalError where a goal for that scorer would come too late."""
        self._check_running()
        if self._holder is not holder:
            text = "the node was cleaned up while the goal was being encoded; configure it, and set the goal again"
            raise GoalError(Response.RESULT_WRONG_STATE, text)

    async def _on_set_goal(self, request: Request, response: Response) -> Response:
        job: Job[Response] = Job(self._wake.trigger)
        self._jobs.put(lambda: job.finish(self._answer(request, response)))
        return await job

    def _on_goal_image(self, message: Image) -> None:
        if not self._images.put(message):
            self._jobs.put(self._set_image)

    def _set_image(self) -> None:
        message = self._images.take(timeout=0)
        assert message is not None  # there is one job for each image that nobody has taken yet

        def make(holder: MessageScorer) -> MadeGoal:
            return _from_view(holder.scorer, (self._single(message),), "goal_image")

        self._set(make, Response(), new_episode=False)

    def _answer(self, request: Request, response: Response) -> Response:
        return self._set(partial(self._requested, request), response, request.reset_episode)

    def _set(self, make: Callable[[MessageScorer], MadeGoal], response: Response, new_episode: bool) -> Response:
        response.initial_distance = float("nan")
        holder = self._holder
        try:
            if holder is None:
                raise GoalError(Response.RESULT_WRONG_STATE, "the node is not configured; configure it first")
            if not holder.scorer.reward.needs_goal:
                text = f"the reward {holder.scorer.reward_name} takes no goal; configure the node with another reward"
                raise GoalError(Response.RESULT_WRONG_STATE, text)
            made = make(holder)
            with self._swap:
                self._check_holder(holder)
                response.initial_distance = holder.set_goal(made.goal, made.source, new_episode, made.targets)
                self._on_change()
            response.result = Response.RESULT_SUCCESS
            response.message = f"goal {made.goal.name} is in force, subgoals: {subgoal_count(holder.scorer)}"
            self._node.get_logger().info(response.message)
        except GoalError as error:
            response.result, response.message = error.result, str(error)
        except Exception as error:  # whatever a file or a model does, the node and its old goal stay
            response.result = Response.RESULT_UNDEFINED_FAILURE
            response.message = f"{type(error).__name__}: {error}"
        if response.result != Response.RESULT_SUCCESS:
            self._complain(f"goal refused: {response.message}")
        in_force = self._holder
        goal = in_force.scorer.goal if in_force else None
        response.goal_id = goal.name if goal else ""
        return response

    def _requested(self, request: Request, holder: MessageScorer) -> MadeGoal:
        scorer = holder.scorer
        if request.camera:
            text = f"camera is {request.camera!r}, but a goal is always for all cameras; leave the field empty"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        if request.source == Request.FROM_IMAGE:
            return _from_view(scorer, (self._single(request.image),), "image")
        if request.source == Request.FROM_CURRENT_FRAME:
            return _from_view(scorer, self._current_view(holder), "current_frame")
        if request.source not in (Request.FROM_FILE, Request.FROM_VIDEO_SUBGOALS):
            text = f"source is {request.source}; use one of the FROM_ constants of v2r_msgs/srv/SetGoal"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        subgoals = request.source == Request.FROM_VIDEO_SUBGOALS
        if subgoals and scorer.reward_name != "uvd":
            text = f"the reward {scorer.reward_name} has no subgoals; configure the node with reward:=uvd"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        return self.from_uri(scorer, request.uri, subgoals, partial(self._check_holder, holder))

    def _current_view(self, holder: MessageScorer) -> tuple[Frame, ...]:
        """What the cameras see now; what they saw a while ago may no longer be there."""
        newest, age = self._newest()
        if newest[0] is None:
            raise GoalError(Response.RESULT_NOT_FOUND, "no camera frame has arrived; activate the node first")
        timeout = self._node.get_parameter("image_timeout").value
        if age > timeout:
            text = f"the newest camera frame is {age:.1f} s old, image_timeout is {timeout:g} s; is the camera running?"
            raise GoalError(Response.RESULT_NOT_FOUND, text)
        try:
            return holder.view(newest)
        except UnpairedError as error:
            raise GoalError(Response.RESULT_NOT_FOUND, str(error)) from error
        except ImageError as error:
            raise GoalError(Response.RESULT_INVALID_IMAGE, str(error)) from error

    def _single(self, message: Image | CompressedImage) -> Frame:
        if self._cameras > 1:
            files = f"files with {PLACEHOLDER} in their name"
            text = f"one image for {self._cameras} cameras; use the current frame, or {files}"
            raise GoalError(Response.RESULT_INVALID_REQUEST, text)
        try:
            return self._decode(message)
        except ImageError as error:
            raise GoalError(Response.RESULT_INVALID_IMAGE, str(error)) from error


def _from_view(scorer: Scorer, view: tuple[Frame, ...], name: str) -> MadeGoal:
    """A goal out of one image of each camera."""
    goal = scorer.goal_from_frames([view], frames_goal_name(name, view))
    return MadeGoal(goal, name, (small_target(view[0]),))
