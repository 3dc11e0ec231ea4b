"""What happens in one episode of a policy: when it is over, and its summary. No node in here."""

from __future__ import annotations

import math

from builtin_interfaces.msg import Duration, Time
from std_msgs.msg import Header

from v2r_core.deploy.pacing import RESTART_NS
from v2r_msgs.msg import Episode, Reward

NAN = float("nan")
END_NAMES = {
    Episode.END_UNKNOWN: "unknown",
    Episode.END_SUCCESS: "success",
    Episode.END_TIME_LIMIT: "time limit",
    Episode.END_REQUESTED: "requested",
    Episode.END_FAULT: "fault",
}


class Beginning:
    """Holds back an episode until there is a reward, since without one the robot may not move.

    It is to begin with an action of the policy, in particular in a simulator in lockstep, not with the zero of a stop.

    Attributes:
        reward: the newest one since the reset, None before that.
        arrived_s: when it arrived.
    """

    def __init__(self, patience: float | None) -> None:
        """Holds back for that many seconds at most; None: an episode needs no reward."""
        self._patience = patience
        self.start()

    def start(self) -> None:
        """The reset is done; the next image is the first one that counts."""
        self.reward: Reward | None = None
        self.arrived_s = 0.0
        self._first_ns = self._first_s = math.inf

    def image(self, now: float, moment_ns: int) -> bool:
        """Takes an image, with its time of arrival and its stamp; True if the episode is to begin with it."""
        self._first_s = min(self._first_s, now)
        if moment_ns < self._first_ns:  # also where an image of before a reset that puts time back came after it
            self._first_ns, self.reward = moment_ns, None
        return self._patience is None or self.reward is not None or self.overdue(now)

    def add(self, now: float, reward: Reward) -> None:
        """Takes a reward and its time of arrival."""
        stamp = nanoseconds(reward.header.stamp)
        if self._first_s < now and (stamp == 0 or stamp >= self._first_ns):
            self.reward, self.arrived_s = reward, now

    def overdue(self, now: float) -> bool:
        """Whether images have come for so long that a reward, or after it the next image, should have come too."""
        return self._patience is not None and now - self._first_s > self._patience


class EpisodeLog:
    """Counts the rewards of one episode.

    Attributes:
        number: of the episode, from 0.
        start_ns: stamp of its first image, or time of arrival where that has none.
        images: how many have come.
        return_sum: sum of the finite rewards.
    """

    def __init__(self, number: int, start_ns: int, frame_id: str) -> None:
        self.number, self.start_ns = number, start_ns
        self.images = 0
        self.return_sum = 0.0
        self._newest_ns = start_ns
        self._frame_id, self._goal_id = frame_id, ""
        self._steps = self._invalid_steps = self._above = 0
        self._final_progress = self._max_progress = NAN

    def belongs(self, reward: Reward) -> bool:
        """Whether a reward is one of this episode's: of an image that is not older than the first."""
        stamp = nanoseconds(reward.header.stamp)
        return stamp == 0 or stamp >= self.start_ns

    def goal_changed(self, reward: Reward) -> bool:
        """Whether a reward is for another goal than those before it; one that names none is for no other."""
        return bool(self._goal_id) and bool(reward.goal_id) and reward.goal_id != self._goal_id

    def add(self, reward: Reward, success_progress: float, success_frames: int) -> bool:
        """Counts a reward; True once progress has held above the threshold for so many rewards on end."""
        self._goal_id = reward.goal_id or self._goal_id
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

    def start_anew(self, moment_ns: int) -> None:
        """Makes the image that came last, with this stamp, the first one."""
        self.start_ns = self._newest_ns = moment_ns
        self.images = 1

    def gone_back(self, moment_ns: int) -> str:
        """Notes an image's stamp; says so, in words, if time went back: then no limit of time can be kept any more.

        That is a stamp of before the episode, or one so much older than the newest that the image is not merely late.
        """
        self.images += 1
        back = moment_ns < self.start_ns or moment_ns <= self._newest_ns - RESTART_NS
        if back:
            return f"the images' stamps went back from {self._newest_ns * 1e-9:.2f} s to {moment_ns * 1e-9:.2f} s"
        self._newest_ns = max(self._newest_ns, moment_ns)
        return ""

    def too_long(self, moment_ns: int, time_limit: float) -> bool:
        """Whether an image of that stamp lies at or beyond the limit in seconds; 0 means none."""
        # Stamps are rounded; an image that is due right at the limit must not slip through by a nanosecond.
        return time_limit > 0 and (moment_ns - self.start_ns) * 1e-9 >= time_limit - 1e-6

    def message(self, reason: int, now_ns: int) -> Episode:
        """The summary at the end of the episode."""
        end_ns = max(now_ns, self._newest_ns)  # the clock may have gone back
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
