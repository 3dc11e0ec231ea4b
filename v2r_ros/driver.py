"""The thread in which a policy decides: newest image in, command out, and a note of what was done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from v2r_core.deploy.policy import Policy
from v2r_core.video.resize import Frame
from v2r_ros.commander import Commander
from v2r_ros.mailbox import Mailbox
from v2r_ros.transitions import Notes, TransitionRecorder


@dataclass(frozen=True)
class Turn:
    """One thing to do.

    Attributes:
        episode: number of the episode.
        image: what to act on; None: the episode is over.
        moment_ns: stamp of the image, or its time of arrival where it has none.
        last: the image ends the episode and is only noted.
    """

    episode: int
    image: Image | CompressedImage | None
    moment_ns: int = 0
    last: bool = False


@dataclass(frozen=True)
class Done:
    """What became of an image: when, how long the actor took in milliseconds, and what went wrong, if anything."""

    moment_ns: int
    inference_ms: float
    problem: str = ""


class Driver:
    """Runs the policy in a thread, on the newest turn only; what it replaced is counted by the mailbox.

    Attributes:
        mailbox: for turns.
        noise_std: deviation of the noise on the policy's actions.
    """

    def __init__(
        self,
        policy: Policy,
        commander: Commander,
        decode: Callable[[Image | CompressedImage], Frame],
        report: Callable[[Done], None],
        recorder: TransitionRecorder | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            policy: is used by this thread alone from now on.
            commander: gets the actions.
            decode: turns a message into RGB or raises.
            report: called after each image, in the thread.
            recorder: gets frames and actions.
        """
        self.mailbox: Mailbox[Turn] = Mailbox()
        self.noise_std = 0.0
        self._policy, self._commander, self._decode, self._report = policy, commander, decode, report
        self._recorder = recorder
        self._rng = np.random.default_rng()
        self._episode: int | None = None
        self._notes: dict[int, Notes] = {}
        self._thread = threading.Thread(target=self._work, name="acting", daemon=True)
        self._thread.start()

    def end(self, episode: int, notes: Notes, *, image_follows: bool = False) -> None:
        """Ends an episode and has these notes written with it.

        Args:
            episode: its number.
            notes: for the recorder.
            image_follows: a turn that is its last is in the mailbox already.
        """
        self._notes[episode] = notes
        if not image_follows:
            self.mailbox.put(Turn(episode, None))

    def close(self) -> None:
        """Ends the thread after the image at hand."""
        self.mailbox.close()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        while (turn := self.mailbox.take()) is not None:
            if turn.episode != self._episode:
                self._finish()
            if turn.image is not None:
                self._report(self._drive(turn, turn.image))
            if turn.image is None or turn.last:
                self._finish()
        self._finish()

    def _drive(self, turn: Turn, image: Image | CompressedImage) -> Done:
        guard, start = self._commander.guard, time.perf_counter()
        guard.acting(time.monotonic())
        action, problem = None, ""
        try:
            frame = self._policy.prepare(self._decode(image))
            first = self._episode is None
            if first:
                self._policy.reset()
            done = self._commander.in_force
            if not turn.last:
                action = self._noisy(self._policy.act(frame))
            self._episode = turn.episode
        except Exception as error:  # whatever an image or a network does, the robot stops and the node goes on
            problem = f"no action: {type(error).__name__}: {error}"
        milliseconds = (time.perf_counter() - start) * 1e3
        guard.acted(time.monotonic(), problem)
        if not turn.last:
            self._commander.act(turn.episode, action)
        if self._recorder is not None and not problem:
            if first:
                self._recorder.begin(turn.moment_ns, frame, robot_episode=turn.episode)
            else:
                self._recorder.step(turn.moment_ns, done, frame)
        return Done(turn.moment_ns, milliseconds, problem)

    def _noisy(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.noise_std:
            return action
        noise = self._rng.normal(0, self.noise_std, action.shape)
        return np.clip(action + noise, -1, 1).astype(np.float32)

    def _finish(self) -> None:
        if self._episode is None:
            return
        notes = self._notes.pop(self._episode, {})
        self._episode = None
        if self._recorder is not None:
            self._recorder.end(notes)
