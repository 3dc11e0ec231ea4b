"""The files of a replay store: what a row is, the journal of its episodes, and how they are written safely."""

from __future__ import annotations

import math
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FRAMES, STEPS, JOURNAL, LAYOUT = "frames.bin", "steps.bin", "episodes.jsonl", "layout.json"

Note = bool | int | float | str
"""What `ReplayStore.end` may be told about an episode."""


class ReplayError(ValueError):
    """A store cannot be opened; the message names the file and the remedy."""


@dataclass(frozen=True)
class Layout:
    """What a row is.

    Attributes:
        frame_shape: (3, S, S) for pixels, (D,) for embeddings.
        frame_dtype: of the frames.
        action_dim: A.
    """

    frame_shape: tuple[int, ...]
    frame_dtype: Literal["uint8", "float16", "float32"]
    action_dim: int

    def __post_init__(self) -> None:
        if not self.frame_shape or min(*self.frame_shape, self.action_dim) < 1:
            raise ValueError(f"{self}: sizes of at least 1 expected")
        if self.frame_dtype not in {"uint8", "float16", "float32"}:
            raise ValueError(f"frame_dtype is {self.frame_dtype!r}, uint8, float16 or float32 expected")

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return math.prod(self.frame_shape) * np.dtype(self.frame_dtype).itemsize

    @property
    def step_dtype(self) -> np.dtype[np.void]:
        """Record of steps.bin."""
        return np.dtype([("action", "<f4", (self.action_dim,)), ("reward", "<f4"), ("discount", "<f4")])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in both files: `rows * row_bytes` is a capacity."""
        return self.frame_bytes + self.step_dtype.itemsize

    def check_frame(self, frame: NDArray[Any], number: int) -> None:
        """Raises ValueError unless a frame, the one of that number in its episode, is of this kind and finite."""
        if frame.shape != self.frame_shape or frame.dtype != self.frame_dtype:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}, {self.frame_dtype} {self.frame_shape} expected")
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            raise ValueError(f"frame {number} of the episode is not finite")

    def check_step(self, action: NDArray[Any], reward: float, discount: float) -> None:
        """Raises ValueError unless action and reward are finite, of this size, and the discount is in [0, 1]."""
        if action.shape != (self.action_dim,) or action.dtype.kind != "f" or not np.isfinite(action).all():
            raise ValueError(
                f"action is {action.dtype} {action.shape} {action.tolist()}, {self.action_dim} finite floats expected"
            )
        if not math.isfinite(reward) or not 0 <= discount <= 1:
            raise ValueError(f"reward {reward} must be finite, discount {discount} in [0, 1]")


@dataclass(frozen=True)
class Episode:
    """A committed episode.

    Attributes:
        number: counted from 0 since the store was made.
        first: number of its first row, counted likewise; its place in the ring is the remainder by the ring's size.
        rows: frames, one more than steps.
        notes: what `end` was given.
    """

    number: int
    first: int
    rows: int
    notes: dict[str, Note] = field(default_factory=dict)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _LayoutFile(_Strict):
    schema_version: Literal[1] = 1
    frame_shape: list[int]
    frame_dtype: Literal["uint8", "float16", "float32"]
    action_dim: int
    capacity_rows: int = Field(ge=2)


class _Entry(_Strict):
    """One line of the journal: an episode, or one of the three ways in which episodes go."""

    episode: int | None = Field(None, ge=0)
    first: int = Field(0, ge=0)
    rows: int = Field(2, ge=2)
    notes: dict[str, Note] = Field(default_factory=dict)
    oldest: int | None = None
    lost: int | None = None
    rewind: int | None = Field(None, ge=0)


@dataclass
class Journal:
    """What episodes.jsonl says.

    Attributes:
        episodes: that were committed and have not gone since, oldest first.
        number: of the next one.
        next: its first row.
        broken: lines that are no entries.
        bytes: its length up to the last whole line.
    """

    episodes: deque[Episode] = field(default_factory=deque)
    number: int = 0
    next: int = 0
    broken: list[str] = field(default_factory=list)
    bytes: int = 0

    @classmethod
    def read(cls, path: Path, capacity_rows: int) -> Self:
        """Plays the journal of a ring of so many rows back."""
        journal = cls()
        content = path.read_bytes()
        journal.bytes = content.rfind(b"\n") + 1
        for count, line in enumerate(content.split(b"\n"), start=1):
            if not line:
                continue
            try:
                journal._apply(_Entry.model_validate_json(line), capacity_rows)
            except ValueError as error:
                journal.broken.append(f"{JOURNAL} line {count}: {_reason(error)}")
        return journal

    def _apply(self, entry: _Entry, capacity_rows: int) -> None:
        if entry.episode is not None:
            if entry.rows > capacity_rows:
                raise ValueError(f"episode {entry.episode} of {entry.rows} rows, the store has {capacity_rows}")
            self.episodes.append(Episode(entry.episode, entry.first, entry.rows, entry.notes))
            self.number = max(self.number, entry.episode + 1)
            self.next = max(self.next, entry.first + entry.rows)
        elif entry.oldest is not None:
            while self.episodes and self.episodes[0].first < entry.oldest:
                self.episodes.popleft()
        elif entry.lost is not None:
            self.episodes = deque(episode for episode in self.episodes if episode.number != entry.lost)
        elif entry.rewind is not None:
            while self.episodes and self.episodes[-1].number >= entry.rewind:
                self.episodes.pop()
            self.number = entry.rewind
            self.next = self.episodes[-1].first + self.episodes[-1].rows if self.episodes else 0
        else:
            raise ValueError("neither an episode nor what became of one")


def open_layout(folder: Path, layout: Layout | None, capacity: int, read_only: bool) -> tuple[Layout, int]:
    """Reads layout.json, or writes it for a new store.

    Args:
        folder: of the store.
        layout: wanted; None for whatever is there.
        capacity: of a new store in bytes.
        read_only: make no new store.

    Returns:
        The layout and the rows of the ring.

    Raises:
        ReplayError: no store, another layout, an unknown version, or room for fewer than two rows.
    """
    path = folder / LAYOUT
    if path.is_file():
        try:
            stored = _LayoutFile.model_validate_json(path.read_bytes())
            found = Layout(tuple(stored.frame_shape), stored.frame_dtype, stored.action_dim)
        except ValueError as error:
            raise ReplayError(f"{path}: {_reason(error)}; it is no replay store of this version") from error
        if layout is not None and layout != found:
            raise ReplayError(f"{folder} holds {found}, {layout} wanted; choose another folder")
        return found, stored.capacity_rows
    if layout is None or read_only:
        raise ReplayError(f"{folder} is no replay store: it has no {LAYOUT}")
    rows = capacity // layout.row_bytes
    if rows < 2:
        raise ReplayError(f"{capacity} bytes hold {rows} rows of {layout.row_bytes} bytes, at least 2 expected")
    folder.mkdir(parents=True, exist_ok=True)
    content = _LayoutFile(
        frame_shape=list(layout.frame_shape),
        frame_dtype=layout.frame_dtype,
        action_dim=layout.action_dim,
        capacity_rows=rows,
    )
    draft = path.with_suffix(".tmp")
    draft.write_text(content.model_dump_json(indent=2) + "\n")
    draft.replace(path)
    return layout, rows


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file of the store.

    Raises:
        ReplayError: it is not there, and `flags` do not make it.
    """
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:
        raise ReplayError(f"{path} is missing; the store is incomplete") from None


def write_at(file: int, content: bytes, offset: int) -> None:
    """Writes all of `content` at a place of a file.

    Raises:
        OSError: it could not be written, or only a part.
    """
    # A disk that runs full takes a part first, and says so only when asked for the rest.
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _reason(error: ValueError) -> str:
    return str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
