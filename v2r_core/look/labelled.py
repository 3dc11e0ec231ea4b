"""One way to open what is labelled: a rosbag2, a folder of videos, a LeRobotDataset, the table of one video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from v2r_core.deploy.goals import GOAL_SUFFIX, is_image, read_goal_image
from v2r_core.label.goals import LAST
from v2r_core.label.set_writer import LABELS, read_manifest, read_record
from v2r_core.label.table import Labels, read_labels
from v2r_core.label.video_sources import SET_FILE
from v2r_core.video.resize import Frame
from v2r_core.video.source import BAG_SUFFIXES, VIDEO_SUFFIXES, open_video
from v2r_core.video.video import Video

SetKind = Literal["bag", "videos", "lerobot"]
TABLE_SUFFIX = ".parquet"
LEROBOT_SET = Path("meta/v2r_labels.json")


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


def open_labelled(path: str | Path) -> LabelledSet:
    """Opens what `v2r label` wrote, or a bag that a live reward node was recorded into.

    Args:
        path: one of
            * a rosbag2 with rewards: its folder or one of its files; `bag:/topic` chooses one of several reward topics,
              or the image topic;
            * the folder of labels of a folder of videos;
            * a labelled LeRobotDataset;
            * the .parquet file of one video.

    Raises:
        FileNotFoundError: nothing there.
        NotLabelledError: no labels there.
        ValueError: damaged labels; the message says which file and why.
    """
    file, topic = _split_topic(Path(path).expanduser())
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file or folder")
    if file.is_file() and file.suffix == TABLE_SUFFIX:
        return _one_table(file)
    if (file / SET_FILE).is_file():
        return _video_set(file)
    if (file / LEROBOT_SET).is_file():
        from v2r_core.look.labelled_lerobot import lerobot_set  # noqa: PLC0415 (pyarrow)

        return lerobot_set(file)
    if _is_bag(file):
        from v2r_core.look.labelled_bag import bag_set  # noqa: PLC0415 (rosbags takes longer to load than to run)

        return bag_set(file, topic)
    what = "a video" if file.suffix.lower() in VIDEO_SUFFIXES else "nothing labelled"
    raise NotLabelledError(f"{file} is {what}; label it first: v2r label {file} --out LABELLED")


def _split_topic(path: Path) -> tuple[Path, str | None]:
    head, colon, topic = str(path).rpartition(":/")
    return (path, None) if not colon or path.exists() else (Path(head), f"/{topic}")


def _is_bag(file: Path) -> bool:
    if file.is_file():
        return file.suffix in BAG_SUFFIXES
    return (file / "metadata.yaml").is_file() or any(each.suffix in BAG_SUFFIXES for each in file.iterdir())


def _one_table(file: Path) -> LabelledSet:
    labels = read_labels(file)
    origin = labels.origin
    episode = LabelledEpisode(origin.name, labels, lambda: open_video(origin.source))
    about = _about(origin.model, origin.model_sha256, origin.reward, origin.kind)
    return LabelledSet(file, "videos", (origin.name,), about, lambda _: episode)


def _video_set(folder: Path) -> LabelledSet:
    try:
        head = read_record(folder)
    except ValueError as error:
        raise NotLabelledError(str(error)) from error
    assert head is not None  # its file was seen
    newest = read_manifest(folder)
    if head.kind == "bags":
        bags = ", ".join(sorted(name for name, line in newest.items() if line.state == "done")) or "none"
        raise NotLabelledError(f"{folder} holds labelled rosbags, give one of them; there are: {bags}")
    tables = {name: folder / LABELS / f"{name}{TABLE_SUFFIX}" for name, line in newest.items() if line.state == "done"}
    failed = {name: line.error or "no reason given" for name, line in newest.items() if line.state == "failed"}
    failed |= {name: f"{table} is gone; label again" for name, table in tables.items() if not table.is_file()}
    names = tuple(sorted(tables.keys() - failed.keys()))

    def read(place: int) -> LabelledEpisode:
        name = names[place]
        return LabelledEpisode(name, read_labels(tables[name]), lambda: open_video(Path(head.root) / name))

    about = _about(head.model, head.model_sha256, head.reward, head.reward_kind) | {"videos": head.root}
    return LabelledSet(folder, "videos", names, about, read, failed)


def _about(model: str, sha256: str, reward: str, kind: str) -> dict[str, str]:
    return {"model": model, "sha256 of the model": sha256, "reward": f"{reward} ({kind.replace('_', ' ')})"}
