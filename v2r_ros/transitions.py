"""What the robot did, as training data: episodes in the replay format, written by a thread of their own."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.replay import Layout, ReplayStore

QUEUE = 128
PIECES = 4
"""An episode longer than that part of the store is cut, or its end would push out its beginning, and all of it."""

Pixels = NDArray[np.uint8]
Notes = dict[str, float | int | str]


@dataclass(frozen=True)
class _Begin:
    frame: Pixels
    notes: Notes


@dataclass(frozen=True)
class _Step:
    stamp_ns: int
    action: NDArray[np.float32]
    frame: Pixels


@dataclass(frozen=True)
class _End:
    notes: Notes


def open_store(folder: str, size: int, action_dim: int, gigabytes: float) -> ReplayStore:
    """Opens or makes the folder for frames of that side in pixels, uint8 channel first.

    Raises:
        OSError, ValueError: it cannot be written, or holds other frames or actions.
    """
    layout = Layout((3, size, size), "uint8", action_dim)
    return ReplayStore(Path(folder).expanduser(), layout, int(gigabytes * 2**30))


class TransitionRecorder:
    """Takes frames and actions from the acting thread and rewards from the executor's, and never holds up either.

    A step whose reward is missing or not finite gets 0, as an agent in a simulator would; its episode's notes have
    their number, `missing_rewards`. The discount is always 1: an episode that a robot's node ended might have gone on.

    An episode longer than a quarter of the store becomes several, with a note `piece` that counts from 0, of which the
    store keeps the newest as it does with whole episodes. The last frame of one is the first of the next, so no step is
    lost; only windows of several steps that would lie across the cut are.

    Whatever goes wrong with the disk ends the recording, not the robot: `problem` says what.

    Attributes:
        problem: why nothing is recorded any more; empty while all is well.
        episodes: committed since the start; each piece counts.
        lost: episodes that were given up because the disk could not keep up.
    """

    def __init__(
        self,
        store: ReplayStore,
        on_problem: Callable[[str], object],
        *,
        patience: float | None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Starts the thread.

        Args:
            store: where episodes go.
            on_problem: called once, in the thread, when recording ends.
            patience: seconds for which a step waits for the reward of its frame, unless many more steps wait already,
                before it is written without; None if no rewards will come.
            say: called, in the thread, when an episode turns out too long to be kept in one piece.
        """
        self.problem = ""
        self.episodes = self.lost = 0
        self._store, self._on_problem, self._patience, self._say = store, on_problem, patience, say
        self._longest = max(store.capacity_rows // PIECES, 2)
        self._items: queue.Queue[_Begin | _Step | _End | None] = queue.Queue(QUEUE)
        self._rewards: dict[int, float] = {}
        self._newest_ns = self._acted_ns = 0
        self._arrived = threading.Condition()
        self._skipping = True
        self._open = False
        self._rows = self._missing = self._pieces = 0
        self._notes: Notes = {}
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)
        self._thread.start()

    # --- for the node's threads --------------------------------------------------------------------------------------

    def begin(self, stamp_ns: int, frame: Pixels, **notes: float | int | str) -> None:
        """The first frame of an episode, (S, S, 3), its stamp, and what is known about the episode by now."""
        if stamp_ns < self._acted_ns:  # a reset put time back: rewards of before would pass for those of other frames
            with self._arrived:
                self._rewards.clear()
                self._newest_ns = 0
        self._acted_ns = stamp_ns
        self._skipping = False
        self._put(_Begin(frame, notes))

    def step(self, stamp_ns: int, action: NDArray[np.float32], frame: Pixels) -> None:
        """The next frame, (S, S, 3), its stamp, and the action in [-1, 1] that was in force until it."""
        self._acted_ns = stamp_ns
        self._put(_Step(stamp_ns, action, frame))

    def reward(self, stamp_ns: int, reward: float) -> None:
        """The reward of the frame with that stamp, which may come before or after the frame."""
        with self._arrived:
            self._rewards[stamp_ns] = reward
            self._newest_ns = max(self._newest_ns, stamp_ns)
            while len(self._rewards) > QUEUE:
                del self._rewards[next(iter(self._rewards))]
            self._arrived.notify()

    def end(self, notes: Notes) -> None:
        """Commits the episode, with what is to be known about it."""
        self._put(_End(notes))

    def close(self) -> None:
        """Writes what is there and ends the thread; an episode without its end is forgotten."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        with suppress(queue.Full):
            self._items.put(None, timeout=1.0)
        self._thread.join(timeout=2.0)

    def _put(self, item: _Begin | _Step | _End) -> None:
        if self._skipping or self.problem:
            return
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._skipping = True
            self.lost += 1
        if self._items.qsize() > QUEUE // 2:
            with self._arrived:
                self._arrived.notify()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            while (item := self._items.get()) is not None:
                self._write_one(item)
        except Exception as error:  # a full disk, a folder that is gone: the robot goes on without
            self.problem = f"recording stopped: {error}"
            self._on_problem(self.problem)
        finally:
            with suppress(Exception):
                self._store.abandon()
            self._store.close()

    def _write_one(self, item: _Begin | _Step | _End) -> None:
        if isinstance(item, _Begin):
            if self._open:
                self._store.abandon()
            self._open, self._notes, self._pieces = True, item.notes, 0
            self._begin_piece(_channel_first(item.frame))
        elif isinstance(item, _Step) and self._open:
            if self._rows == self._longest:
                self._cut()
            self._last = _channel_first(item.frame)
            self._store.append(item.action, self._reward_of(item.stamp_ns), 1.0, self._last)
            self._rows += 1
        elif isinstance(item, _End) and self._open:
            self._open = False
            if self._rows > 1:
                self._end_piece(item.notes | ({"piece": self._pieces} if self._pieces else {}))
            else:
                self._store.abandon()

    def _begin_piece(self, frame: Pixels) -> None:
        self._store.begin(frame)
        self._last, self._rows, self._missing = frame, 1, 0

    def _end_piece(self, notes: Notes) -> None:
        self._store.end(**self._notes, **notes, missing_rewards=self._missing)
        self.episodes += 1

    def _cut(self) -> None:
        if not self._pieces:
            self._say(
                f"an episode is longer than a quarter of {self._store.folder}: it is recorded in pieces of "
                f"{self._rows - 1} steps, the oldest of which give way when the folder is full. For longer ones raise "
                "record_gb, in a new folder"
            )
        self._end_piece({"piece": self._pieces})
        self._pieces += 1
        self._begin_piece(self._last)

    def _reward_of(self, stamp_ns: int) -> float:
        if self._patience is None:
            return 0.0

        def known() -> bool:
            late = self._closing or self._items.qsize() > QUEUE // 2
            return late or stamp_ns in self._rewards or self._newest_ns > stamp_ns

        with self._arrived:
            self._arrived.wait_for(known, self._patience)
            reward = self._rewards.get(stamp_ns, math.nan)
            self._rewards = {stamp: value for stamp, value in self._rewards.items() if stamp > stamp_ns}
        if math.isfinite(reward):
            return reward
        self._missing += 1
        return 0.0


def _channel_first(frame: Pixels) -> Pixels:
    return np.ascontiguousarray(frame.transpose(2, 0, 1))
