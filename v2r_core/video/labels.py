"""Classes of videos, for the few methods that use them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2r_core.video.source import is_bag_folder, split_episode, split_topic

UNLABELLED = -1
FOLDERS = "folders"
_COLUMNS = ("video", "label")
_SHOWN = 3
"""Folders that an error names."""


@dataclass(frozen=True)
class Labels:
    """Which class each video belongs to.

    Attributes:
        classes: their names; a label is a place in here.
        of_video: path as the dataset has it, to label; videos that are not in it have none.
    """

    classes: tuple[str, ...]
    of_video: Mapping[str, int]

    def of_names(self, names: Sequence[str]) -> list[int]:
        """Labels of the samples of a batch, from their names "video#frame"; -1 where there is none."""
        return [self.of_video.get(name.rpartition("#")[0], UNLABELLED) for name in names]

    def fraction(self, part: float, seed: int) -> Labels:
        """Keeps the labels of a part of each class's videos, at least one of each, chosen by a seed.

        Raises:
            ValueError: `part` is not in (0, 1].
        """
        if not 0 < part <= 1:
            raise ValueError(f"label_fraction is {part}, a number above 0 and up to 1 expected")
        rng = np.random.default_rng(seed)
        kept: dict[str, int] = {}
        for label in range(len(self.classes)):
            videos = sorted(video for video, found in self.of_video.items() if found == label)
            count = math.ceil(part * len(videos))
            kept |= {videos[place]: label for place in rng.permutation(len(videos))[:count]}
        return Labels(self.classes, kept)


def read_labels(where: str | Path, videos: Sequence[str]) -> Labels:
    """Reads the classes of videos.

    Args:
        where: `folders`, where a folder is a class, see `class_folder`; or a CSV file with the columns `video` (path,
            or file name; of an episode of a LeRobotDataset `pick#3`, also without the camera) and `label`.
        videos: paths as the dataset has them.

    Returns:
        Labels, with the classes in alphabetical order; two at least.

    Raises:
        ValueError: not such a file, none of the videos has a label, or all have the same.
    """
    if str(where) == FOLDERS:
        names = {video: class_folder(video).name for video in videos}
    else:
        listed = _read_csv(Path(where))
        names = {video: next((listed[name] for name in _names_of(video) if name in listed), "") for video in videos}
    names = {video: name for video, name in names.items() if name}
    if not names:
        raise ValueError(f"labels {where}: none of the {len(videos)} videos is in it; name them as in --data")
    classes = tuple(sorted(set(names.values())))
    if len(classes) < 2:
        folders = ", ".join(sorted({str(class_folder(video).absolute()) for video in names})[:_SHOWN])
        raise ValueError(
            f"labels {where}: one class only, {classes[0]!r}, of {len(names)} videos in {folders}; at least two are "
            "needed: give a folder for each class to --data, with videos or images in it, or a CSV file as --labels"
        )
    return Labels(classes, {video: classes.index(name) for video, name in names.items()})


def class_folder(video: str | Path) -> Path:
    """The folder whose name is the class of a video.

    Args:
        video: what `open_video` takes. A folder of images is a class itself, and so is a LeRobotDataset of its
            episodes; everything else, files and bags, lies in the folder of its class.
    """
    path = Path(video)
    if (episode := split_episode(path)) is not None:
        return episode[0]
    path, _ = split_topic(path)
    return path if path.is_dir() and not is_bag_folder(path) else path.parent


def _names_of(video: str) -> list[str]:
    """The names that a table may have for a video, the longest first."""
    path = Path(video)
    if (episode := split_episode(path)) is None:
        return [video, path.name]
    folder, number, camera = episode
    names = [f"{name}#{number}" for name in (folder, folder.name)]
    return [*(f"{name}/{camera}" for name in names if camera is not None), *names]


def _read_csv(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise ValueError(f"labels {file}: no such file; give a CSV file, or `{FOLDERS}`")
    with file.open(newline="") as opened:
        rows = csv.DictReader(opened)
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            raise ValueError(
                f"labels {file}: columns are {rows.fieldnames}, {list(_COLUMNS)} expected in the first line"
            )
        return {row["video"]: row["label"] for row in rows}
