"""Classes of videos, for the few methods that use them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNLABELLED = -1
FOLDERS = "folders"
_COLUMNS = ("video", "label")


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
        where: `folders`, where the folder that a video lies in is its class; or a CSV file with the columns `video`
            (path, or file name) and `label`.
        videos: paths as the dataset has them.

    Returns:
        Labels, with the classes in alphabetical order.

    Raises:
        ValueError: not such a file, or none of the videos has a label.
    """
    if str(where) == FOLDERS:
        names = {video: Path(video).parent.name for video in videos}
    else:
        listed = _read_csv(Path(where))
        names = {video: listed.get(video, listed.get(Path(video).name, "")) for video in videos}
    names = {video: name for video, name in names.items() if name}
    if not names:
        raise ValueError(f"labels {where}: none of the {len(videos)} videos is in it; name them as in --data")
    classes = tuple(sorted(set(names.values())))
    return Labels(classes, {video: classes.index(name) for video, name in names.items()})


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
