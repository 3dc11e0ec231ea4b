"""The thread in which a simulated robot lives: it stands still until the first action, moves, and may fail. No node."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.envs import PixelEnv
from v2r_core.video.resize import Frame

START_NS = 10**9
"""Simulated time of the first frame: a stamp of 0 means that there is none."""
TICK_S = 0.01


class State(Enum):
    """What the robot does."""

    STANDING = "stands still until the first action"
    RUNNING = "runs"
    OVER = "stands still, the episode is over; reset it"
    FAILED = "has failed; reset it"


@dataclass(frozen=True)
class Pace:
    """When the next frame comes.

    Attributes:
        speed: factor on real time; 0: none.
        lockstep: wait for the action on the last frame, and for its reward if rewards come.
        action_timeout: seconds after which an action counts no more and zero takes its place, and after which a reward
            is not waited for any longer.
    """

    speed: float
    lockstep: bool
    action_timeout: float

    def __post_init__(self) -> None:
        if not self.lockstep and self.speed == 0:
            raise ValueError("speed is 0, as fast as the actions come, but lockstep is off; set a speed or lockstep")


@dataclass(frozen=True)
class View:
    """What is seen at one moment of simulated time.

    Attributes:
        time_ns: simulated time.
        frame: uint8 RGB (S, S, 3).
        success: whether the task is done, by the simulator's own word.
        focal_length: of the camera, in pixels; NaN where the simulator does not say.
    """

    time_ns: int
    frame: Frame
    success: bool
    focal_length: float = math.nan


@dataclass(frozen=True)
class _Given:
    action: NDArray[np.float32]
    arrived_s: float


class Simulator:
    """Runs an environment in a thread of its own, which its OpenGL context never leaves.

    A reset takes the next seed. After it the robot stands still, and simulated time runs on, until the first action
    comes: what falls over by itself waits for its policy. The same at the end of an episode, until the next reset.

    In lockstep each view gets its action and its reward before the next one, and before a reset. Whether rewards come
    is seen from the first one that does; one that is late for longer than `action_timeout` ends the waiting until the
    next one comes.

    Attributes:
        action_dim: numbers in an action.
    """

    def __init__(
        self,
        make: Callable[[], PixelEnv],
        seed: int,
        pace: Pace,
        show: Callable[[View], int],
        tick: Callable[[int], None],
        complain: Callable[[str], object],
    ) -> None:
        """Starts the thread and waits until the environment is made and reset.

        Args:
            make: makes the environment; called in the thread.
            seed: of the first episode.
            pace: when frames come.
            show: gets every view, in the thread; gives the stamp that it went out with, in nanoseconds.
            tick: gets simulated time between two views, in the thread; not called without a speed.
            complain: logs an error.

        Raises:
            ValueError: the environment cannot be made, or does not say how long a step is.
        """
        self._make, self._pace, self._show, self._tick, self._complain = make, pace, show, tick, complain
        self._seed, self._dt, self._focal_length, self.action_dim = seed - 1, 0.0, math.nan, 0
        self._news = threading.Condition()
        self._given: _Given | None = None
        self._job: Callable[[str, str], None] | None = None
        self._stopping = False
        self._state = State.STANDING
        self._view = View(START_NS, np.zeros((1, 1, 3), np.uint8), False)
        self._shown_s, self._shown_ns = 0.0, 0
        self._rewarded_ns = 0
        self._rewards_come = False
        made: list[str] = []
        ready = threading.Event()

        def first(_: str, problem: str) -> None:
            made.append(problem)
            ready.set()

        self._thread = threading.Thread(target=self._live, args=(first,), name="simulator", daemon=True)
        self._thread.start()
        ready.wait()
        if made[0]:
            raise ValueError(made[0])

    # --- for other threads -------------------------------------------------------------------------------------------

    def act(self, action: NDArray[np.float32]) -> None:
        """The newest action, (A,) in [-1, 1]; what lies outside is clipped.

        Raises:
            ValueError: another number of numbers, or not finite.
        """
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise ValueError(f"action {action.tolist()} is not {self.action_dim} finite numbers")
        with self._news:
            self._given = _Given(np.clip(action, -1, 1), time.monotonic())
            self._news.notify()

    def rewarded(self, stamp_ns: int) -> None:
        """The view that went out with this stamp has its reward."""
        with self._news:
            self._rewarded_ns, self._rewards_come = stamp_ns, True
            self._news.notify()

    def reset(self, done: Callable[[str, str], None]) -> None:
        """Asks for the next episode; `done` gets what was done and what went wrong (empty: nothing), in the thread."""
        with self._news:
            self._job = done
            self._news.notify()

    def close(self) -> None:
        """Ends the thread, which frees the renderer."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join(timeout=3.0)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _live(self, first: Callable[[str, str], None]) -> None:
        try:
            env = self._make()
            self._dt, (self.action_dim,) = env.dt, env.action_space.shape
            self._focal_length = env.focal_length
            if not (math.isfinite(self._dt) and self._dt > 0):
                raise ValueError("it does not say how long a step is; give it an attribute dt, or render_fps")
        except Exception as error:  # whatever a simulator's packages raise, the node is to say it and end
            first("", f"the environment cannot be made: {error}")
            return
        self._restart(env, first)
        while True:
            with self._news:  # not let go after the wait: what ended it must hold until it is read
                if not self._wait():
                    break
                job, self._job = self._job, None
                action = self._next_action()
                missing = self._awaits_reward()
                self._rewards_come &= not missing
            if missing:
                self._complain(
                    f"no reward for an image within {self._pace.action_timeout} s; going on without until one comes "
                    "again. Is reward_node well, and action_repeat such that each image has its turn there?"
                )
            if job is not None:
                self._restart(env, job)
            else:
                self._advance(env, action)
        env.close()

    def _restart(self, env: PixelEnv, done: Callable[[str, str], None]) -> None:
        self._seed += 1
        text = f"seed {self._seed}"
        try:
            frame, _ = env.reset(seed=self._seed)
        except Exception as error:  # the next reset may do better
            self._state = State.FAILED
            self._complain(f"reset failed, {text}: {error}")
            done(text, f"reset failed, {text}: {error}")
            return
        self._state, self._given = State.STANDING, None
        done(text, "")
        self._present(frame, success=False)

    def _advance(self, env: PixelEnv, action: NDArray[np.float32] | None) -> None:
        if action is None:
            self._present(self._view.frame, self._view.success)
            return
        try:
            frame, _, terminated, truncated, info = env.step(action)
        except Exception:  # a simulator that raises must not take the node with it
            self._state = State.FAILED
            self._complain(f"the simulation failed and stands until it is reset:\n{traceback.format_exc()}")
            return
        self._state = State.OVER if terminated or truncated else State.RUNNING
        self._present(frame, bool(info["success"]))

    def _present(self, frame: Frame, success: bool) -> None:
        self._view = View(self._view.time_ns + round(self._dt * 1e9), frame, success, self._focal_length)
        # From when it was due, or the rate would sink; from now, if that was missed by far.
        now, period = time.monotonic(), self._period
        due = self._shown_s + period
        self._shown_s = due if period and now - due < period else now
        self._shown_ns = self._show(self._view)

    @property
    def _period(self) -> float:
        return self._dt / self._pace.speed if self._pace.speed else 0.0

    def _wait(self) -> bool:
        """Until the next view is due or somebody wants a reset; False at the end. The caller holds the lock."""
        while not self._stopping:
            left = self._due_s() - time.monotonic()
            if left <= 0:
                break
            ticking = self._period > 0 and self._state is not State.FAILED
            self._news.wait(min(left, TICK_S) if ticking else min(left, 1.0))
            if ticking:
                gone = min((time.monotonic() - self._shown_s) * self._pace.speed, self._dt)
                self._tick(self._view.time_ns + int(max(gone, 0.0) * 1e9))
        return not self._stopping

    def _due_s(self) -> float:
        patience = self._pace.action_timeout if self._awaits_reward() else 0.0
        if self._job is None:
            if self._state is State.FAILED:
                return math.inf
            patience = max(patience, self._period)
            if self._pace.lockstep and not (self._fresh() and self._state is not State.OVER):
                patience = max(patience, self._pace.action_timeout if self._state is State.RUNNING else self._dt)
        return self._shown_s + patience

    def _awaits_reward(self) -> bool:
        return self._pace.lockstep and self._rewards_come and self._rewarded_ns != self._shown_ns

    def _fresh(self) -> bool:
        return self._given is not None and time.monotonic() - self._given.arrived_s <= self._pace.action_timeout

    def _next_action(self) -> NDArray[np.float32] | None:
        """What the robot does now; None if it stands still."""
        if self._fresh() and self._given is not None:
            action = self._given.action
        elif self._state is State.RUNNING:
            action = np.zeros(self.action_dim, np.float32)
        else:
            return None
        if self._pace.lockstep:  # each action counts once
            self._given = None
        return None if self._state is State.OVER else action
