"""From an image message to a reward message, whatever is wrong with the image. No node in here, so it tests alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builtin_interfaces.msg import Duration
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from v2r_core.deploy.cameras import MAX_SKEW, check_pair, component_fields
from v2r_core.deploy.judging import FLOATS, MAX_GAP, MAX_STAMP_FUTURE, NAN, Judged, StreamJudge
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.reward import RewardSample
from v2r_core.video.resize import Frame
from v2r_msgs.msg import Reward

Images = tuple[Image | CompressedImage | None, ...]
"""The newest message of each camera, the one that sets the pace first; None: nothing yet."""

MAX_DURATION_S = 2**31 - 1


@dataclass(frozen=True)
class Scored:
    """One answer.

    Attributes:
        message: the reward.
        problem: what went wrong in words; empty: nothing.
        frame: the image of the first camera, where it was readable.
        target: picture of the subgoal that is being pursued, where there is one.
    """

    message: Reward
    problem: str
    frame: Frame | None
    target: Frame | None = None


class MessageScorer:
    """Scores image messages with a `Scorer`; safe to call from the worker while another thread sets a goal.

    Attributes:
        scorer: the scorer.
        goal_source: where the goal in force came from.
    """

    def __init__(
        self,
        scorer: Scorer,
        decode: Callable[[Image | CompressedImage], Frame],
        goal_source: str = "",
        max_stamp_future: float = MAX_STAMP_FUTURE,
        max_gap: float = MAX_GAP,
        cameras: Sequence[str] = ("",),
        max_skew: float = MAX_SKEW,
        targets: Sequence[Frame] = (),
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
            targets: see `set_goal`.
        """
        self.scorer = scorer
        self.goal_source = goal_source
        self.cameras = tuple(cameras)
        self._targets = tuple(targets)
        self._decode = decode
        self._max_skew = max_skew
        self._judge = StreamJudge(scorer, max_stamp_future, max_gap)
        self._lock = threading.Lock()

    @property
    def episode(self) -> int:
        """Number of the running episode."""
        return self._judge.episode

    @property
    def too_slow(self) -> bool:
        """Whether the camera is so slow that the reward's window can never fill."""
        return self._judge.too_slow

    def set_goal(self, goal: Goal, source: str, new_episode: bool = False, targets: Sequence[Frame] = ()) -> float:
        """Puts a goal in force between two frames; the next frame ends no step, so its reward is NaN.

        Args:
            goal: the goal.
            source: where it came from.
            new_episode: also count a new episode; otherwise the running one goes on.
            targets: small pictures of its subgoals, one each or none at all.

        Returns:
            Distance from the newest scored frame to it; NaN before the first.

        Raises:
            ValueError: it does not fit the encoder; the old goal stays.
        """
        with self._lock:
            self._judge.set_goal(goal, new_episode)
            self.goal_source = source
            self._targets = tuple(targets)
            return float(self.scorer.distances_to_goal().mean())

    def set_scale(self, scale: float, clip: float) -> None:
        """Changes factor and bound of the reward from the next frame on; clip 0 means none."""
        with self._lock:
            self.scorer.set_shape(scale, clip or None)

    def set_max_stamp_future(self, seconds: float) -> None:
        """Changes how far a stamp may lie ahead of the clock."""
        self._judge.max_stamp_future = seconds

    def begin(self) -> None:
        """Starts counting frames from 0 and an episode; for activation."""
        with self._lock:
            self._judge.begin()

    def reset(self) -> None:
        """Starts an episode."""
        with self._lock:
            self._judge.reset()

    def due(self, image: Image | CompressedImage, now_ns: int) -> bool:
        """See `StreamJudge.due`. For one thread, the one that hears the camera.

        Args:
            image: every image of the camera that sets the pace, in turn.
            now_ns: the node's clock.
        """
        return self._judge.due(_nanoseconds(image), now_ns)

    def stale(self, header: Header, dropped: int) -> Reward:
        """The answer where no image has come for too long: no number, and all that holds without one.

        Takes no lock: the thread that calls it must not wait for an inference that hangs.

        Args:
            header: of the last image, or what stands for it.
            dropped: frames dropped so far.
        """
        message = self._message(header, self._judge.stale())
        message.dropped_frames = dropped
        return message

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
        frame: Frame | None = None
        stamp_ns = _nanoseconds(first)

        def step() -> tuple[RewardSample, Status]:
            nonlocal frame
            view = self.view(each)
            frame = view[0]
            return self.scorer.step(view)

        with self._lock:
            judged = self._judge.judge(stamp_ns, now_ns, step)
            message = self._message(first.header, judged)
            # A reward that leaves the subgoals out pursues the last one.
            targets = self._targets[-message.subgoal_count :] if message.subgoal_count else ()
            target = targets[message.subgoal_index] if message.subgoal_index < len(targets) else None
        message.dropped_frames = dropped
        message.inference_ms = (time.perf_counter() - start) * 1e3
        return Scored(message, judged.problem, frame, target)

    def view(self, images: Images) -> tuple[Frame, ...]:
        """The frames of all cameras.

        Args:
            images: the newest message of each; there is one of the first.

        Raises:
            UnpairedError: one is missing, or their stamps lie too far apart.
            ImageError: one cannot be decoded.
        """
        assert images[0] is not None
        stamp_ns, frames = _nanoseconds(images[0]), []
        for name, image in zip(self.cameras, images, strict=True):
            their_ns = None if image is None else _nanoseconds(image)
            check_pair(name, their_ns, self.cameras[0], stamp_ns, self._max_skew)
            assert image is not None
            frames.append(self._decode(image))
        return tuple(frames)

    def _message(self, header: Header, judged: Judged) -> Reward:
        message = blank_reward(header)
        components = component_fields(self.scorer, self.cameras, judged.sample)
        for name, value in (judged.fields(self.scorer.goal) | components).items():
            setattr(message, name, value)
        return message


def _nanoseconds(message: Image | CompressedImage | Reward) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def blank_reward(header: Header) -> Reward:
    """A reward message with that header in which no number is available."""
    message = Reward(header=header)
    for name in FLOATS:
        setattr(message, name, NAN)
    return message


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
