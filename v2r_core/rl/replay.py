"""Episodes on disk, each frame once, and n-step transitions drawn from them as DrQ-v2 draws them.

layout.json      shapes, dtype and size of the ring
frames.bin       ring of frames, one a row
steps.bin        ring of (action, reward, discount), one a row: the step that led to the frame of that row
episodes.jsonl   journal: an episode was committed, fell out of the ring, was found incomplete, or was taken back

An episode can be drawn once it is committed. Before old rows are overwritten the journal says so: a process that dies
at any time leaves a store that opens. Rows are written with pwrite, which reports a full disk as an error, and read
through a map of the file: memory that the kernel can take back.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.replay_files import (
    JOURNAL,
    Episode,
    Journal,
    Layout,
    Note,
    ReplayError,
    open_file,
    open_layout,
    write_at,
)
from v2r_core.rl.replay_rows import Rows
from v2r_core.rl.transitions import Batch, draw_start, nstep_return, stored_discount

__all__ = [
    "Batch",
    "Episode",
    "Layout",
    "ReplayError",
    "ReplayStore",
    "draw_start",
    "nstep_return",
    "stored_discount",
]


class ReplayStore:
    """Ring of episodes in a folder. One process writes; any number may read it at other times.

    Args:
        folder: made if it is not there.
        layout: of the rows; None for that of the folder.
        capacity_bytes: of frames and steps in a new store; an existing one keeps its own.
        read_only: open an existing store, write nothing.

    Attributes:
        episodes: those that can be drawn, oldest first.
        skipped: what was found broken when opening, one line each, with its place.

    Raises:
        ReplayError: no store, or one of another layout or that another process writes, or a capacity below two rows.
    """

    def __init__(
        self, folder: Path, layout: Layout | None = None, capacity_bytes: int = 8 << 30, *, read_only: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.read_only = read_only
        self.layout, self.capacity_rows = open_layout(self.folder, layout, capacity_bytes, read_only)
        self._current: int | None = None
        self._written = 0
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        self._journal: int | None = open_file(self.folder / JOURNAL, flags)
        self._rows = Rows(self.folder, self.layout, self.capacity_rows, flags)
        if not read_only:
            self._lock(self._journal)
        journal = Journal.read(self.folder / JOURNAL, self.capacity_rows)
        self._journal_bytes = journal.bytes
        if not read_only:
            os.ftruncate(self._journal, journal.bytes)
        self._next = journal.next
        self._number = journal.number
        skipped = list(journal.broken)
        self.episodes = self._readable(journal.episodes, skipped)
        self.skipped = tuple(skipped)
        self._index()

    @property
    def rows(self) -> int:
        """Frames of all episodes that can be drawn."""
        return sum(episode.rows for episode in self.episodes)

    @property
    def number(self) -> int:
        """Of the next episode: how many were committed since the store was made."""
        return self._number

    @property
    def recording(self) -> bool:
        """True between `begin` and `end`."""
        return self._current is not None

    def begin(self, frame: NDArray[Any]) -> None:
        """Starts an episode with the frame of the reset; action and reward of this row are 0, its discount is 1.

        Raises:
            ValueError: an episode is in progress, or the frame does not fit the layout.
            OSError: see `append`.
        """
        if self.read_only:
            raise ValueError(f"{self.folder} was opened to be read only")
        if self._current is not None:
            raise ValueError("an episode is in progress; end() or abandon() it first")
        self.layout.check_frame(frame, 0)
        self._current, self._written = self._next, 0
        try:
            self._write(np.zeros(self.layout.action_dim, np.float32), 0.0, 1.0, frame)
        except OSError:
            self._current = None
            raise

    def append(self, action: NDArray[Any], reward: float, discount: float, frame: NDArray[Any]) -> None:
        """Adds a step and the frame that it led to.

        Args:
            action: float (A,), finite.
            reward: finite.
            discount: in [0, 1], see `stored_discount`.
            frame: of the layout's shape and dtype, finite.

        Raises:
            ValueError: one of these is violated, no episode was begun, or the episode is longer than the whole store.
            OSError: the row was not written, say because the disk is full; earlier episodes, and the rows of this one,
                are as they were.
        """
        if self._current is None:
            raise ValueError("no episode is in progress; begin() one with the frame of the reset")
        action = np.asarray(action)
        self.layout.check_frame(frame, self._written)
        self.layout.check_step(action, reward, discount)
        if self._written == self.capacity_rows:
            raise ValueError(
                f"the episode is longer than the {self.capacity_rows} rows of {self.folder}; make a larger store"
            )
        self._write(action, reward, discount, frame)

    def end(self, **notes: Note) -> int:
        """Commits the episode in progress: on disk when this returns, and drawn from now on.

        Args:
            notes: kept with it, say its return or whether it succeeded; finite.

        Returns:
            Its number.

        Raises:
            ValueError: no episode is in progress, it has no step, or a note is not finite.
            OSError: it could not be committed; it stays in progress, so `end` can be tried again.
        """
        if self._current is None or self._written < 2:
            raise ValueError("no episode with at least one step is in progress")
        known = {name: value.item() if isinstance(value, np.generic) else value for name, value in notes.items()}
        bad = [name for name, value in known.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise ValueError(f"notes {bad} are not finite; leave out what is not known")
        episode = Episode(self._number, self._current, self._written, known)
        try:
            self._rows.sync()
        except OSError as error:
            raise self._failed(error) from error
        self._note({"episode": episode.number, "first": episode.first, "rows": episode.rows, "notes": episode.notes})
        self.episodes.append(episode)
        self._next, self._number, self._current = episode.first + episode.rows, episode.number + 1, None
        self._index()
        return episode.number

    def abandon(self) -> None:
        """Forgets the episode in progress, if there is one."""
        if self._current is None:
            return
        self._current = None
        self._rows.cut(self._next)

    def rewind(self, number: int) -> None:
        """Takes back the episodes from this number on, as if they had never been recorded.

        For going on from a checkpoint that is older than the store. Episodes that later ones have overwritten do not
        come back.

        Args:
            number: how many episodes had been committed at the checkpoint.

        Raises:
            ValueError: the store was opened to be read only, or an episode is in progress.
            OSError: the journal could not be written; nothing was taken back.
        """
        if self.read_only or self._current is not None:
            raise ValueError(f"{self.folder} is read only or records an episode; it cannot be rewound now")
        if number >= self._number:
            return
        self._note({"rewind": number})
        self.episodes = [episode for episode in self.episodes if episode.number < number]
        self._number = number
        self._next = self.episodes[-1].first + self.episodes[-1].rows if self.episodes else 0
        self._rows.cut(self._next)
        self._index()

    def sample(self, batch: int, rng: np.random.Generator, *, nstep: int, gamma: float, stack: int) -> Batch:
        """Draws transitions as the authors do: an episode, each alike, then a start in it, each alike.

        Args:
            batch: B.
            rng: all the state that sampling has.
            nstep: n; episodes of fewer steps are not drawn.
            gamma: discount of a step.
            stack: frames K of an observation; before the first frame of an episode it is repeated.

        Raises:
            ValueError: no episode is long enough.
        """
        usable = np.flatnonzero(self._steps >= nstep)
        if not len(usable):
            raise ValueError(
                f"{self.folder} has no episode of at least {nstep} steps among {len(self.episodes)}; record one first"
            )
        episode = usable[rng.integers(0, len(usable), size=batch)]
        return self.at(episode, draw_start(self._steps[episode], nstep, rng.integers), nstep, gamma, stack)

    def at(self, episode: NDArray[np.int64], start: NDArray[np.int64], nstep: int, gamma: float, stack: int) -> Batch:
        """The transitions that start at given places.

        Args:
            episode: (B,), places in `episodes`.
            start: (B,), rows of these episodes, from 1 to steps - nstep + 1: row t holds the action after frame t - 1.
            nstep: see `sample`.
            gamma: see `sample`.
            stack: see `sample`.
        """
        first = self._first[episode]
        window = np.arange(1 - stack, 1)
        before = np.maximum((start - 1)[:, None] + window, 0) + first[:, None]
        after = np.maximum((start + nstep - 1)[:, None] + window, 0) + first[:, None]
        rows = (first + start)[:, None] + np.arange(nstep)
        steps = self._rows.steps(rows)
        reward, discount = nstep_return(steps["reward"], steps["discount"], gamma)
        action = np.ascontiguousarray(steps["action"][:, 0])
        return Batch(self._rows.frames(before), action, reward, discount, self._rows.frames(after))

    def read(self, episode: Episode) -> tuple[NDArray[Any], NDArray[np.void]]:
        """All of an episode.

        Args:
            episode: one of `episodes`.

        Returns:
            Frames (rows, *frame_shape), and records with `action`, `reward` and `discount`, the first of which is the
            reset's.
        """
        rows = episode.first + np.arange(episode.rows)
        return self._rows.frames(rows), self._rows.steps(rows)

    def close(self) -> None:
        """Closes the files; an episode in progress is forgotten."""
        self._rows.close()
        self._current = None
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, action: NDArray[Any], reward: float, discount: float, frame: NDArray[Any]) -> None:
        assert self._current is not None
        row = self._current + self._written
        self._drop(row - self.capacity_rows)
        try:
            self._rows.write(row, action, reward, discount, frame)
        except OSError as error:
            raise self._failed(error) from error
        self._written += 1

    def _drop(self, row: int) -> None:
        # The episode that holds this row is about to lose it.
        if self.episodes and self.episodes[0].first <= row:
            self._note({"oldest": row + 1})
            self.episodes = [episode for episode in self.episodes if episode.first > row]
            self._index()

    def _note(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        file = self._journal
        assert file is not None
        try:
            write_at(file, line, self._journal_bytes)
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, self._journal_bytes)
            raise self._failed(error) from error
        self._journal_bytes += len(line)

    def _failed(self, error: OSError) -> OSError:
        text = (
            f"{error.strerror}: {self.folder} takes no more. Free space there and try again, or give up the episode; "
            "those before it are complete"
        )
        return OSError(error.errno, text)

    def _lock(self, journal: int) -> None:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ReplayError(f"{self.folder}: another process writes here; choose another folder or end it") from None

    def _readable(self, listed: Iterable[Episode], skipped: list[str]) -> list[Episode]:
        """What the files hold of the episodes that the journal lists; the others are named, and struck out."""
        found: list[Episode] = []
        for episode in listed:
            if episode.first < self._next - self.capacity_rows:
                continue
            problem = self._rows.lacking(episode.first, episode.rows)
            if not problem:
                found.append(episode)
                continue
            skipped.append(f"episode {episode.number}: {problem}")
            if not self.read_only:
                # Later episodes make the file longer again: without this the gap would pass for frames.
                self._note({"lost": episode.number})
        written = min(self._rows.held().values())
        if self._next < written < self.capacity_rows:
            skipped.append(f"rows {self._next} to {written - 1}: an episode that was not ended")
        return found

    def _index(self) -> None:
        self._first = np.array([episode.first for episode in self.episodes], dtype=np.int64)
        self._steps = np.array([episode.rows - 1 for episode in self.episodes], dtype=np.int64)
        self._rows.map()
