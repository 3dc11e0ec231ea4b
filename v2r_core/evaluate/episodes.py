"""Episodes to judge a reward on: videos, and what is known about them.

A folder of episodes has a file `episodes.json` with a label set for each video, as benchmarks/make_episodes.py writes
it. Every label may be missing, and so may the file: then the folder is unlabelled, and metrics that need labels say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from v2r_core.video.footage import find_videos
from v2r_core.video.source import open_video
from v2r_core.video.video import Video, VideoError

EPISODES_FILE = "episodes.json"


class EpisodeError(ValueError):
    """A folder of episodes cannot be used; the message names the file, what is wrong and the remedy."""


class Labels(BaseModel):
    """What is known about one episode; anything but `file` may be None, which means not known.

    Attributes:
        file: the video, relative to the folder.
        task: what was to be done; episodes of one task are compared with each other.
        seed: of the placement of objects: episodes of one task and seed start alike.
        behaviour: who acted, for tables.
        quality: grade; the higher, the better. Only the order counts.
        success: the task is done at the end.
        success_frame: first frame from which on the task stays done.
        stages: ascending frame numbers at which a new stage begins; the start and the end are no marks.
        dense_reward: the simulator's reward of each frame; None for a frame that has none.
        fps: frames/s.
        frames: number of frames T.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(min_length=1)
    task: str | None = None
    seed: int | None = None
    behaviour: str | None = None
    quality: FiniteFloat | None = None
    success: bool | None = None
    success_frame: int | None = Field(default=None, ge=0)
    stages: list[int] | None = None
    dense_reward: list[FiniteFloat | None] | None = None
    fps: float | None = Field(default=None, gt=0)
    frames: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise ValueError(f"file {self.file!r} leaves the folder; give a path inside of it")
        if self.success_frame is not None and self.success is False:
            raise ValueError(f"{self.file}: success_frame {self.success_frame} without success")
        stages = self.stages or []
        if stages != sorted(set(stages)) or (stages and stages[0] < 0):
            raise ValueError(f"{self.file}: stages {stages}, ascending frame numbers expected")
        if self.frames is not None:
            last = max([*stages, self.success_frame or 0])
            if last >= self.frames or len(self.dense_reward or []) not in {0, self.frames}:
                raise ValueError(f"{self.file}: labels of more or fewer frames than its {self.frames}")
        return self


class EpisodeIndex(BaseModel):
    """The content of `episodes.json`. `about` says how the episodes were made, for the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    about: dict[str, str | int | float] = Field(default_factory=dict)
    episodes: list[Labels]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        files = [labels.file for labels in self.episodes]
        if twice := sorted({file for file in files if files.count(file) > 1}):
            raise ValueError(f"{twice[0]} is listed twice")
        return self


@dataclass(frozen=True)
class Episode:
    """One video and its labels."""

    path: Path
    labels: Labels

    def open(self) -> Video:
        """Opens the video.

        Raises:
            VideoError: it is damaged, or has another number of frames than its labels.
        """
        video = open_video(self.path, lean=True)
        try:
            Labels.model_validate({**self.labels.model_dump(), "frames": self.labels.frames or len(video)})
            if self.labels.frames not in {None, len(video)}:
                raise ValueError(f"{self.labels.file}: labels of {self.labels.frames} frames")
        except ValueError as error:
            found = len(video)
            video.close()
            raise VideoError(f"{self.path}: {found} frames do not fit its labels; render it again ({error})") from error
        return video


@dataclass(frozen=True)
class EpisodeSet:
    """The episodes of a folder, in the order of the file, or of their names where there is none.

    Attributes:
        folder: where they are.
        episodes: one at least.
        labelled: there is an `episodes.json`.
        about: how they were made.
    """

    folder: Path
    episodes: tuple[Episode, ...]
    labelled: bool
    about: dict[str, str | int | float]


def read_episodes(folder: str | Path) -> EpisodeSet:
    """Finds the episodes of a folder; opens none of them.

    Raises:
        EpisodeError: no such folder, nothing in it, an `episodes.json` that cannot be understood, or a listed video
            that is not there.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise EpisodeError(f"{root}: no such folder; benchmarks/make_episodes.py renders some episodes")
    file = root / EPISODES_FILE
    if not file.is_file():
        try:
            videos = [Path(video) for video in find_videos([root])]
        except (VideoError, OSError) as error:
            raise EpisodeError(f"{root}: no videos in it ({error})") from error
        found = tuple(Episode(video, Labels(file=str(_relative(video, root)))) for video in videos)
        return EpisodeSet(root, found, labelled=False, about={})
    try:
        index = EpisodeIndex.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EpisodeError(f"{file}: {where or 'file'}: {first['msg']}; write it again") from error
    episodes = tuple(Episode(root / labels.file, labels) for labels in index.episodes)
    if not episodes:
        raise EpisodeError(f"{file}: lists no episodes; render some")
    if missing := [episode.path for episode in episodes if not episode.path.exists()]:
        raise EpisodeError(f"{missing[0]}: listed in {file.name}, but not there ({len(missing)} in all); render again")
    return EpisodeSet(root, episodes, labelled=True, about=index.about)


def write_index(folder: Path, index: EpisodeIndex) -> None:
    """Writes `episodes.json` by rename, so that a half-written one is never found."""
    partial = folder / (EPISODES_FILE + ".partial")
    partial.write_text(index.model_dump_json(exclude_none=True, indent=None) + "\n")
    partial.replace(folder / EPISODES_FILE)


def _relative(video: Path, root: Path) -> Path:
    if video.is_relative_to(root):
        return video.relative_to(root)
    # Episodes of a LeRobotDataset: FOLDER#3/CAMERA.
    episode = str(video).removeprefix(str(root))
    return Path(f"{root.name}{episode}") if episode.startswith("#") else Path(video.name)
