"""A labelled set and its episodes, however they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from v2r_core.deploy.goals import GOAL_SUFFIX, is_image, read_goal_image
from v2r_core.label.goals import LAST
from v2r_core.label.table import Labels
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video

SetKind = Literal["bag", "videos", "lerobot"]


class NotLabelledError(ValueError):
    """Nothing labelled is there; the message names it and says how to label it."""


@dataclass(frozen=True)
class LabelledEpisode:
    """One labelled episode.

    Attributes:
        name: of the video, or "episode 3".
        labels: one row a frame.
        opener: see `open_frames`.
    """

    name: str
    labels: Labels
    opener: Callable[[], Video]

    def open_frames(self) -> Video:
        """The episode's frames: frame t is the one of row t of the labels.

        Raises:
            FileNotFoundError: the videos are not where they were.
            VideoError: they cannot be read. Single frames that are damaged, or that a row has none of, raise it when
                they are asked for.
        """
        return self.opener()

    @property
    def goal(self) -> str:
        """Identifier of the goal; empty without one."""
        return self.labels.origin.goal

    @property
    def own_end(self) -> bool:
        """Whether the episode was compared with its own end, which flatters its progress."""
        return self.labels.origin.goal_source == LAST

    def goal_picture(self) -> Frame | None:
        """The picture of the goal, uint8 RGB (H, W, 3), as far as labels say where it is.

        None for a saved goal, for one with subgoals (labels do not say which frames these were), and where the file or
        the frame cannot be read.
        """
        source = self.labels.origin.goal_source
        if not source or int(self.labels.curve.subgoal_count.max(initial=0)) > 1:
            return None
        try:
            if self.own_end:
                with self.open_frames() as frames:
                    return frames[len(frames) - 1]
            if source.endswith(GOAL_SUFFIX) or not Path(source).exists():
                return None
            if is_image(Path(source)):
                return read_goal_image(Path(source))
            with open_video(source) as demonstration:
                return demonstration[len(demonstration) - 1]
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class LabelledSet:
    """Labelled episodes; in memory is one at a time. Not thread-safe.

    Attributes:
        path: as it was given.
        kind: how it is stored.
        names: of the episodes.
        about: what stands behind the labels, in words.
        failed: name of a video that could not be labelled, and why.
        read: gives an episode by its place.
        free: closes what is open.
    """

    path: Path
    kind: SetKind
    names: tuple[str, ...]
    about: Mapping[str, str]
    read: Callable[[int], LabelledEpisode]
    failed: Mapping[str, str] = field(default_factory=dict)
    free: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> LabelledEpisode:
        """The episode at a place from 0. Raises IndexError, and `TableError` or VideoError if it cannot be read."""
        if not 0 <= place < len(self):
            raise IndexError(f"{self.path}: episode {place} of {len(self)} asked for")
        return self.read(place)

    def __iter__(self) -> Iterator[LabelledEpisode]:
        return (self.read(place) for place in range(len(self)))

    def close(self) -> None:
        """Closes what is open; frames can no longer be read."""
        self.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
