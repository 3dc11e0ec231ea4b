"""Whether the robot may move: everything that has to be fresh and well, in one place. No node in here."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from v2r_core.deploy.stream import Status


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds of a clock that neither jumps nor stands still.

    Attributes:
        image_timeout: without an image, without an action, or in one run of the actor.
        reward_timeout: without a reward, and, in seconds of the stamps, by which the newest reward may lie behind the
            newest image; None where there need not be any rewards.
        warm_up_time: of status WARMING_UP on end.
    """

    image_timeout: float
    reward_timeout: float | None
    warm_up_time: float


class Guard:
    """Says why the robot has to stand still. Safe to call from several threads.

    Only a running episode is guarded; `begin` counts as the first sign of life of camera and actor, not of the reward.

    Attributes:
        stops: how often the robot was stopped, by cause.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stops: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._missed_deadline = self._dead = False
        self._since: float | None = None
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """A new episode: nothing is late yet. Missed deadlines and a dead publisher are not forgotten."""
        with self._lock:
            self._image = self._act = self._reward = now
            self._busy: float | None = None
            self._actor_problem = ""
            self._status: Status | None = None
            self._newest_ns = self._previous_ns = self._rewarded_ns = 0
            self._warming: float | None = None
            self._since = None

    # --- signs of life -----------------------------------------------------------------------------------------------

    def image(self, now: float, stamp_ns: int) -> None:
        """An image with that stamp arrived."""
        with self._lock:
            self._image = now
            if stamp_ns > self._newest_ns:
                self._previous_ns, self._newest_ns = self._newest_ns, stamp_ns

    def acting(self, now: float) -> None:
        """The actor starts to run."""
        with self._lock:
            self._busy = now

    def acted(self, now: float, problem: str = "") -> None:
        """The actor is done; a problem means that there is no action."""
        with self._lock:
            self._busy = None
            self._actor_problem = problem
            if not problem:
                self._act = now

    def reward(self, now: float, status: int, stamp_ns: int) -> None:
        """A reward of this episode arrived: one of v2r_msgs/Reward's statuses, its image's stamp (0: it has none)."""
        with self._lock:
            self._reward, self._rewarded_ns = now, stamp_ns
            self._missed_deadline = False
            self._status = Status(status) if status in set(Status) else Status.INTERNAL_ERROR
            if self._status is not Status.WARMING_UP:
                self._warming = None
            elif self._warming is None:
                self._warming = now

    def missed_deadline(self) -> None:
        """The middleware says that a reward is overdue; the next reward settles it."""
        with self._lock:
            self._missed_deadline = True

    def alive(self, publishers: int) -> None:
        """The middleware says how many publishers of the reward are alive."""
        with self._lock:
            self._dead = publishers < 1

    # --- the verdict -------------------------------------------------------------------------------------------------

    def reason(self, now: float) -> str:
        """Why the robot has to stand still now; empty if it may move. Counts every new stop."""
        with self._lock:
            found = self._find(now)
            if not found:
                self._since = None
                return ""
            if self._since is None:
                self._since = now
                self.stops[found[0]] += 1
            return found[1]

    def stopped_for(self, now: float) -> float:
        """Seconds for which `reason` has had one on end."""
        with self._lock:
            return 0.0 if self._since is None else now - self._since

    def _find(self, now: float) -> tuple[str, str] | None:
        """Cause, as it is counted, and the reason in words."""
        limit = self.limits.image_timeout
        if now - self._image > limit:
            return "camera", f"no image for {now - self._image:.2f} s"
        if self._busy is not None and now - self._busy > limit:
            return "actor", f"the actor has been running for {now - self._busy:.2f} s"
        if self._actor_problem:
            return "actor", self._actor_problem
        if now - self._act > limit:
            return "actor", f"no action for {now - self._act:.2f} s"
        return self._find_in_reward(now) if self.limits.reward_timeout is not None else None

    def _find_in_reward(self, now: float) -> tuple[str, str] | None:
        if self._dead:
            return "reward liveliness", "the reward's publisher is not alive"
        if self._missed_deadline:
            return "reward deadline", "the reward missed its deadline"
        if late := self._find_late(now):
            return late
        if self._warming is not None:
            if now - self._warming > self.limits.warm_up_time:
                return "reward status", f"the reward has been warming up for {now - self._warming:.2f} s"
        elif self._status is not Status.OK:
            return "reward status", f"the reward's status is {self._status.name}"
        return None

    def _find_late(self, now: float) -> tuple[str, str] | None:
        timeout = self.limits.reward_timeout
        assert timeout is not None
        if self._status is None:
            return "reward stale", f"no reward yet, {now - self._reward:.2f} s after the beginning"
        if now - self._reward > timeout:
            return "reward stale", f"no reward for {now - self._reward:.2f} s"
        lag = (self._newest_ns - self._rewarded_ns) * 1e-9
        # One image may always wait for its reward, however far apart a simulator or a slow camera takes them.
        if self._previous_ns > self._rewarded_ns > 0 and lag > timeout:
            return "reward late", f"the newest reward lies {lag:.2f} s behind the newest image, more than {timeout:g} s"
        return None
