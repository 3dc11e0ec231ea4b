"""What each image of a stream is worth, whatever is wrong with it: stamps, gaps, restarts, windows.

No message types in here, so that the node and `v2r label` share it and agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from v2r_core.deploy.cameras import UnpairedError
from v2r_core.deploy.pacing import LATEST, RESTART_NS, Pacer
from v2r_core.deploy.stream import NoGoalError, Scorer, Status
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.reward import RewardSample
from v2r_core.video.pixels import ImageError

NAN = float("nan")
MAX_STAMP_FUTURE = 1.0
MAX_GAP = 1.0
"""Seconds; what a live node takes where nothing else is configured (a test holds them to its parameters)."""
UNSTAMPED = "the image has stamp 0: latency is unknown and the policy cannot match it; fix the camera driver"
FLOATS = ("reward", "raw_reward", "value", "progress", "success_probability", "uncertainty", "inference_ms")
"""Fields of v2r_msgs/Reward that are NaN where a number is not available."""


FAILURES: dict[type[Exception], Status] = {
    ImageError: Status.BAD_IMAGE,
    UnpairedError: Status.STALE_IMAGE,
    NoGoalError: Status.NO_GOAL,
}
_NOT_SCORED = (Status.BAD_IMAGE, Status.NO_GOAL, Status.STALE_IMAGE)


@dataclass(frozen=True)
class Judged:
    """One answer.

    Attributes:
        sample: the numbers; None where there are none.
        status: how far they can be trusted.
        problem: what went wrong in words; empty: nothing.
        episode: number of the episode that the image belongs to, from 0.
        frame_count: images scored so far, this one included.
        subgoal_count: subgoals that the reward pursues, see `subgoal_count`.
    """

    sample: RewardSample | None
    status: Status
    problem: str
    episode: int
    frame_count: int
    subgoal_count: int

    def fields(self, goal: Goal | None) -> dict[str, Any]:
        """Fields of v2r_msgs/Reward by name, all but the header, the cameras' components and what the node measures.

        Args:
            goal: the goal in force.
        """
        fields: dict[str, Any] = dict.fromkeys(FLOATS, NAN) | {"subgoal_index": 0}
        if self.sample is not None:
            for name in ("reward", "raw_reward", "value", "progress", "uncertainty"):
                fields[name] = float(np.float32(getattr(self.sample, name)))
            fields["subgoal_index"] = int(self.sample.subgoal_index)
        return fields | {
            "subgoal_count": self.subgoal_count,
            "status": int(self.status),
            "episode": self.episode,
            "frame_count": self.frame_count,
            "goal_id": goal.name if goal else "",
        }


def subgoal_count(scorer: Scorer) -> int:
    """Number of subgoals that a scorer's reward pursues, as its samples say; 0 without a goal.

    A goal may have more of them than that: all rewards but uvd leave them out.
    """
    if scorer.goal is None:
        return 0
    return len(scorer.goal.milestones) if scorer.reward_name == "uvd" else 1


class StreamJudge:
    """Judges images in the order in which they come. Not thread-safe.

    Attributes:
        scorer: the scorer.
        max_stamp_future: seconds that a stamp may lie ahead of the clock.
        episode: number of the running episode.
        frame_count: images scored since `begin`.
    """

    def __init__(self, scorer: Scorer, max_stamp_future: float = MAX_STAMP_FUTURE, max_gap: float = MAX_GAP) -> None:
        """Judges with a scorer, which is `paced` where its reward has a window.

        Args:
            scorer: has its goal already, or gets one by `set_goal`.
            max_stamp_future: seconds that a stamp may lie ahead of the clock.
            max_gap: seconds between two stamps above which their difference is no step: the reward is NaN.
        """
        self.scorer = scorer
        self.max_stamp_future = max_stamp_future
        self.episode = 0
        self.frame_count = 0
        self._max_gap_ns = int(max_gap * 1e9)
        self._last_ns = 0
        # Stamp, or time where there is none, of the newest frame in the reward's window.
        self._window_ns = 0
        self._pacer = None if scorer.period is None else Pacer(scorer.period)

    def set_goal(self, goal: Goal, new_episode: bool = False) -> None:
        """Puts a goal in force; the next image ends no step, so its reward is NaN.

        Raises:
            ValueError: it does not fit the encoder; the old goal stays.
        """
        self.scorer.set_goal(goal)
        self.episode += int(new_episode)
        self._last_ns = self._window_ns = 0

    def begin(self) -> None:
        """Starts counting images from 0, and an episode."""
        self.scorer.reset()
        self.frame_count = 0
        self._last_ns = self._window_ns = 0

    def reset(self) -> None:
        """Starts an episode."""
        self.scorer.reset()
        self.episode += 1
        self._last_ns = self._window_ns = 0

    def due(self, stamp_ns: int, now_ns: int) -> bool:
        """Whether an image's turn has come; a reward with a window of frames wants them its period apart.

        Images that come earlier are to be left out. Remembers the one that it lets through, unless `judge` will refuse
        it: what is refused gets its answer, but takes nobody's turn.

        Args:
            stamp_ns: of every image of the camera that sets the pace, in turn; 0: it has none.
            now_ns: the clock, which stands in for a stamp of 0.
        """
        if self._pacer is None or self._refusal(stamp_ns, now_ns):
            return True
        if stamp_ns and self._pacer.late(stamp_ns):  # the frame before it is not scored yet
            return True
        return self._pacer.due(stamp_ns or now_ns)

    @property
    def too_slow(self) -> bool:
        """Whether the camera is so slow that the reward's window can never fill."""
        return self._pacer is not None and self._pacer.too_slow

    def judge(self, stamp_ns: int, now_ns: int, step: Callable[[], tuple[RewardSample, Status]]) -> Judged:
        """Answers one image. Never raises for anything that the image, a model or a goal can do.

        Args:
            stamp_ns: of the image, nanoseconds; 0: it has none.
            now_ns: the clock, nanoseconds.
            step: scores it; raises ImageError, UnpairedError or NoGoalError where that cannot be done. Not called if
                the stamp is refused.
        """
        sample, status, problem = self._judge(stamp_ns, now_ns, step)
        if status not in _NOT_SCORED:
            self.frame_count += 1
        return Judged(sample, status, problem, self.episode, self.frame_count, subgoal_count(self.scorer))

    def stale(self) -> Judged:
        """The answer where no image has come for too long."""
        return Judged(None, Status.STALE_IMAGE, "", self.episode, self.frame_count, subgoal_count(self.scorer))

    def _judge(
        self, stamp_ns: int, now_ns: int, step: Callable[[], tuple[RewardSample, Status]]
    ) -> tuple[RewardSample | None, Status, str]:
        refusal = self._refusal(stamp_ns, now_ns)
        if refusal:
            return None, Status.BAD_IMAGE, refusal
        moment = stamp_ns or now_ns
        if stamp_ns and stamp_ns <= self._last_ns:
            problem = "stamps jumped back: the stream was restarted, so a new episode begins"
            self.reset()  # which forgets the stamps from before, or an unusable image would leave it to the next one
        else:
            problem = self._broken_window(moment) or ("" if stamp_ns else UNSTAMPED)
        gap = self.scorer.period is None and 0 < self._last_ns < stamp_ns - self._max_gap_ns
        try:
            sample, status = step()
        except tuple(FAILURES) as error:
            if self._pacer is not None:  # the next image gets the turn, which may be early enough for the window
                self._pacer.give_back(stamp_ns, self._window_ns)
            return None, FAILURES[type(error)], str(error)
        except Exception as error:  # a robot's node must outlive whatever a model or a provider does
            return None, Status.INTERNAL_ERROR, f"inference failed: {type(error).__name__}: {error}"
        if status is Status.INTERNAL_ERROR:
            return sample, status, "the model gave a number that is not finite; see `v2r doctor`"
        self._last_ns, self._window_ns = stamp_ns, moment
        if gap and status is Status.OK:
            # What changed while the camera was away is not the reward of one step.
            sample, status = replace(sample, reward=NAN, raw_reward=NAN), Status.WARMING_UP
        return sample, status, problem

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
