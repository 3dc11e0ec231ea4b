"""What happens in one episode of a policy: when it is over, and its summary. No node in here."""

from __future__ import annotations

import math

from builtin_interfaces.msg import Duration, Time
from std_msgs.msg import Header

from v2r_msgs.msg import Episode, Reward

NAN = float("nan")
END_NAMES = {
    Episode.END_UNKNOWN: "unknown",
    Episode.END_SUCCESS: "success",
    Episode.END_TIME_LIMIT: "time limit",
    Episode.END_REQUESTED: "requested",
    Episode.END_FAULT: "fault",
}


class EpisodeLog:
    """Counts the rewards of one episode.

    Attributes:
        number: of the episode, from 0.
        start_ns: stamp of its first image, or time of arrival where that has none.
        return_sum: sum of the finite rewards.
    """

    def __init__(self, number: int, start_ns: int, frame_id: str) -> None:
        self.number, self.start_ns = number, start_ns
        self.return_sum = 0.0
        self._frame_id, self._goal_id = frame_id, ""
        self._steps = self._invalid_steps = self._above = 0
        self._final_progress = self._max_progress = NAN

    def belongs(self, reward: Reward) -> bool:
        """Whether a reward is one of this episode's: of an image that is not older than the first."""
        stamp = nanoseconds(reward.header.stamp)
        return stamp == 0 or stamp >= self.start_ns

    def goal_changed(self, reward: Reward) -> bool:
        """Whether a reward is for another goal than the episode's first one."""
        return bool(self._goal_id) and reward.goal_id != self._goal_id

    def add(self, reward: Reward, success_progress: float, success_frames: int) -> bool:
        """Counts a reward; True once progress has held above the threshold for so many rewards on end."""
        self._goal_id = reward.goal_id
        if math.isfinite(reward.reward):
            self.return_sum += reward.reward
        if math.isfinite(reward.progress):
            self._final_progress = reward.progress
            self._max_progress = max(reward.progress, -1.0 if math.isnan(self._max_progress) else self._max_progress)
        if reward.status != Reward.STATUS_OK:
            self._invalid_steps += 1
            self._above = 0
            return False
        self._steps += 1
        self._above = self._above + 1 if reward.progress >= success_progress else 0
        return success_progress > 0 and self._above >= success_frames

    def too_long(self, moment_ns: int, time_limit: float) -> bool:
        """Whether an image of that stamp lies at or beyond the limit in seconds; 0 means none."""
        # Stamps are rounded; an image that is due right at the limit must not slip through by a nanosecond.
        return time_limit > 0 and (moment_ns - self.start_ns) * 1e-9 >= time_limit - 1e-6

    def message(self, reason: int, now_ns: int) -> Episode:
        """The summary at the end of the episode."""
        end_ns = max(now_ns, self.start_ns)
        return Episode(
            header=Header(stamp=_time(end_ns), frame_id=self._frame_id),
            start=_time(self.start_ns),
            end_reason=reason,
            episode=self.number,
            goal_id=self._goal_id,
            steps=self._steps,
            invalid_steps=self._invalid_steps,
            return_sum=self.return_sum,
            final_progress=self._final_progress,
            max_progress=self._max_progress,
            duration=Duration(sec=(end_ns - self.start_ns) // 10**9, nanosec=(end_ns - self.start_ns) % 10**9),
        )


def nanoseconds(stamp: Time) -> int:
    """A stamp as one number."""
    return stamp.sec * 10**9 + stamp.nanosec


def _time(nanosec: int) -> Time:
    return Time(sec=nanosec // 10**9, nanosec=nanosec % 10**9)
