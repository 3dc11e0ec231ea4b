"""From an image message to a reward message, whatever is wrong with the image. No node in here, so it tests alone."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from builtin_interfaces.msg import Duration
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from v2r_core.deploy.stream import LATEST, NoGoalError, Scorer, Status, frames_apart
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.reward import RewardSample
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame
from v2r_msgs.msg import Reward

Images = tuple[Image | CompressedImage | None, ...]
"""The newest message of each camera, the one that sets the pace first; None: nothing yet."""

NAN = float("nan")
# A stamp that goes back by more than this is a restarted stream (a bag that loops, a simulator that was reset);
# by less it is a frame that came too late.
RESTART_NS = 1_000_000_000
MAX_DURATION_S = 2**31 - 1
UNSTAMPED = "the image has stamp 0: latency is unknown and the policy cannot match it; fix the camera driver"
INTERVALS = 8


@dataclass(frozen=True)
class Scored:
    """One answer: the message, what went wrong in words (empty: nothing), and the frame where it was readable."""

    message: Reward
    problem: str
    frame: Frame | None


class UnpairedError(RuntimeError):
    """One of several cameras is silent or too far behind."""


FAILURES: dict[type[Exception], Status] = {
    ImageError: Status.BAD_IMAGE,
    UnpairedError: Status.STALE_IMAGE,
    NoGoalError: Status.NO_GOAL,
}


class MessageScorer:
    """Scores image messages with a `Scorer`; safe to call from the worker while another thread sets a goal.

    Attributes:
        scorer: the scorer.
        episode: number of the running episode.
        frame_count: frames scored since activation.
        goal_source: where the goal in force came from.
    """

    def __init__(
        self,
        scorer: Scorer,
        decode: Callable[[Image | CompressedImage], Frame],
        goal_source: str = "",
        max_stamp_future: float = 1.0,
        max_gap: float = 1.0,
        cameras: Sequence[str] = ("",),
        max_skew: float = 0.1,
    ) -> None:
        """Wraps a scorer.

        Args:
            scorer: has its goal already, or gets one by `set_goal`.
            decode: turns a message into RGB or raises ImageError.
            goal_source: where its goal came from.
            max_stamp_future: seconds that a stamp may lie ahead of the clock.
            max_gap: seconds between two stamps above which their difference is no step: the reward is NaN.
            cameras: their names, the one that sets the pace first.
            max_skew: seconds that the stamps of several cameras may lie apart.
        """
        self.scorer = scorer
        self.goal_source = goal_source
        self.max_stamp_future = max_stamp_future
        self.episode = 0
        self.cameras = tuple(cameras)
        self._decode = decode
        self._max_skew = max_skew
        self._max_gap_ns = int(max_gap * 1e9)
        self._last_ns = 0
        # Stamps, or times where there is none: of the newest frame in the reward's window, of the newest image, and of
        # the newest one that got a turn.
        self._window_ns = self._camera_ns = self._due_ns = 0
        self._intervals: deque[int] = deque(maxlen=INTERVALS)
        self.frame_count = 0
        self._lock = threading.Lock()

    def set_goal(self, goal: Goal, source: str, new_episode: bool = False) -> float:
        """Puts a goal in force between two frames; the next frame ends no step, so its reward is NaN.

        Args:
            goal: the goal.
            source: where it came from.
            new_episode: also count a new episode; otherwise the running one goes on.

        Returns:
            Distance from the newest scored frame to it; NaN before the first.

        Raises:
            ValueError: it does not fit the encoder; the old goal stays.
        """
        with self._lock:
            self.scorer.set_goal(goal)
            self.goal_source = source
            self.episode += int(new_episode)
            self._last_ns = self._window_ns = 0
            return float(self.scorer.distances_to_goal().mean())

    def set_scale(self, scale: float, clip: float) -> None:
        """Changes factor and bound of the reward from the next frame on; clip 0 means none."""
        with self._lock:
            self.scorer.reward.set_shape(scale, clip or None)

    def begin(self) -> None:
        """Starts counting frames from 0 and an episode; for activation."""
        with self._lock:
            self.scorer.reset()
            self.frame_count = 0
            self._last_ns = self._window_ns = 0

    def reset(self) -> None:
        """Starts an episode."""
        with self._lock:
            self.scorer.reset()
            self.episode += 1
            self._last_ns = self._window_ns = 0

    def due(self, image: Image | CompressedImage, now_ns: int) -> bool:
        """Whether an image's turn has come; a reward with a window of frames wants them its period apart.

        Images that come earlier are to be left out. Remembers the one that it lets through, unless `score` will refuse
        it: what is refused gets its answer, but takes nobody's turn. For one thread, the one that hears the camera.

        Args:
            image: every image of the camera that sets the pace, in turn.
            now_ns: the node's clock, which stands in for a stamp of 0.
        """
        period, stamp_ns = self.scorer.period, _nanoseconds(image)
        if period is None or self._refusal(stamp_ns, now_ns):
            return True
        moment = stamp_ns or now_ns
        since = moment - self._due_ns
        if stamp_ns and -RESTART_NS < since <= 0:  # late, but the frame before it is not scored yet
            return True
        interval = self._interval(moment)
        if since > 0 and interval and round(since / interval) < frames_apart(interval * 1e-9, period):
            return False
        self._due_ns = moment
        return True

    def _interval(self, moment: int) -> int:
        """Nanoseconds from one image of the camera to the next; 0 before the second one and after a restart."""
        latest = moment - self._camera_ns
        if not self._camera_ns or latest <= -RESTART_NS:
            self._intervals.clear()
        elif latest > 0:
            self._intervals.append(latest)
        self._camera_ns = moment
        # Of intervals that a lost image made longer there may be many, of shorter ones hardly any.
        return sorted(self._intervals)[len(self._intervals) // 4] if self._intervals else 0

    def score(self, images: Image | CompressedImage | Images, now_ns: int, dropped: int = 0) -> Scored:
        """Answers one image, or one of each camera. Never raises for anything that they, a model or a goal can do.

        Args:
            images: the message, or the newest of each camera; the answer has the header of the first.
            now_ns: the node's clock, nanoseconds.
            dropped: frames dropped so far, copied into the answer.
        """
        start = time.perf_counter()
        each: Images = images if isinstance(images, tuple) else (images,)
        first = each[0]
        assert first is not None  # it is what there is an answer to
        with self._lock:
            sample, status, problem, frame = self._judge(each, first, now_ns)
            message = blank_reward(first.header)
            _fill(message, sample)
            goal = self.scorer.goal
            message.status = int(status)
            message.episode = self.episode
            message.goal_id = goal.name if goal else ""
            message.subgoal_count = len(goal.milestones) if goal else 0
            if status not in (Status.BAD_IMAGE, Status.NO_GOAL, Status.STALE_IMAGE):
                self.frame_count += 1
            if len(self.cameras) > 1 and sample is not None:
                message.component_names = list(self.cameras)
                message.component_values = (-self.scorer.distances_to_goal()).tolist()
        message.frame_count = self.frame_count
        message.dropped_frames = dropped
        message.inference_ms = (time.perf_counter() - start) * 1e3
        return Scored(message, problem, frame)

    def _judge(
        self, images: Images, image: Image | CompressedImage, now_ns: int
    ) -> tuple[RewardSample | None, Status, str, Frame | None]:
        stamp_ns = _nanoseconds(image)
        refusal = self._refusal(stamp_ns, now_ns)
        if refusal:
            return None, Status.BAD_IMAGE, refusal, None
        moment = stamp_ns or now_ns
        if stamp_ns and stamp_ns <= self._last_ns:
            problem = "stamps jumped back: the stream was restarted, so a new episode begins"
            self.scorer.reset()
            self.episode += 1
        else:
            problem = self._broken_window(moment) or ("" if stamp_ns else UNSTAMPED)
        gap = self.scorer.period is None and 0 < self._last_ns < stamp_ns - self._max_gap_ns
        frame = None
        try:
            view = self._view(images, stamp_ns)
            frame = view[0]
            sample, status = self.scorer.step(view)
        except tuple(FAILURES) as error:
            if self._due_ns == stamp_ns:  # the next image gets the turn, which may be early enough for the window
                self._due_ns = self._window_ns
            return None, FAILURES[type(error)], str(error), frame
        except Exception as error:  # a robot's node must outlive whatever a model or a provider does
            return None, Status.INTERNAL_ERROR, f"inference failed: {type(error).__name__}: {error}", frame
        if status is Status.INTERNAL_ERROR:
            return sample, status, "the model gave a number that is not finite; see `v2r doctor`", frame
        self._last_ns, self._window_ns = stamp_ns, moment
        if gap and status is Status.OK:
            # What changed while the camera was away is not the reward of one step.
            sample, status = replace(sample, reward=NAN, raw_reward=NAN), Status.WARMING_UP
        return sample, status, problem, frame

    def _broken_window(self, moment: int) -> str:
        """Why a window of frames has to start anew, which it then does; empty if it need not."""
        period, since = self.scorer.period, abs(moment - self._window_ns) * 1e-9
        longest = self._max_gap_ns * 1e-9 if period is None else LATEST * period
        if self.scorer.reward.history < 2 or not self._window_ns or since <= longest:
            return ""
        self.scorer.reset()
        if period is None:
            return f"no frame for {since:.3f} s: the reward's window starts anew"
        return (
            f"frames come {since:.3f} s apart, the reward's window wants {period:.3f} s: camera or model is too slow, "
            "so it is warming up again; raise the rate, or train with a larger stride"
        )

    def _refusal(self, stamp_ns: int, now_ns: int) -> str:
        """Why an image with that stamp is not scored; empty if it is."""
        if stamp_ns > now_ns + self.max_stamp_future * 1e9:
            ahead = (stamp_ns - now_ns) * 1e-9
            return f"stamp lies {ahead:.3f} s in the future; synchronise the clocks or raise max_stamp_future"
        behind = self._last_ns - stamp_ns
        if stamp_ns and self._last_ns and 0 <= behind < RESTART_NS:
            return f"stamp is {behind * 1e-9:.3f} s older than the last frame's; frame ignored"
        return ""

    def _view(self, images: Images, stamp_ns: int) -> tuple[Frame, ...]:
        """The frames of all cameras, if their stamps lie close enough together."""
        frames = []
        for name, image in zip(self.cameras, images, strict=True):
            if image is None:
                raise UnpairedError(f"camera {name!r} has sent nothing yet; is it running?")
            skew = abs(_nanoseconds(image) - stamp_ns) * 1e-9
            if skew > self._max_skew:
                raise UnpairedError(
                    f"camera {name!r} is {skew:.3f} s apart from {self.cameras[0]!r}; see max_camera_skew"
                )
            frames.append(self._decode(image))
        return tuple(frames)


def _nanoseconds(message: Image | CompressedImage | Reward) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def blank_reward(header: Header) -> Reward:
    """A reward message with that header in which no number is available."""
    message = Reward(header=header)
    for name in ("reward", "raw_reward", "value", "progress", "success_probability", "uncertainty", "inference_ms"):
        setattr(message, name, NAN)
    return message


def _fill(message: Reward, sample: RewardSample | None) -> None:
    if sample is None:
        return
    message.reward = float(np.float32(sample.reward))
    message.raw_reward = float(np.float32(sample.raw_reward))
    message.value = float(np.float32(sample.value))
    message.progress = float(np.float32(sample.progress))
    message.uncertainty = float(np.float32(sample.uncertainty))
    message.subgoal_index = int(sample.subgoal_index)


def latency(message: Reward, now_ns: int) -> float:
    """Writes publication time minus stamp into the message.

    Returns:
        Seconds; NaN if the stamp is 0 or ahead of the clock (the field is 0 then).
    """
    stamp_ns = _nanoseconds(message)
    difference = now_ns - stamp_ns
    if stamp_ns == 0 or difference < 0 or difference // 1_000_000_000 > MAX_DURATION_S:
        return NAN
    message.latency = Duration(sec=difference // 1_000_000_000, nanosec=difference % 1_000_000_000)
    return difference * 1e-9
