"""Which goal each video of a folder has."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from v2r_core.label.goals import ANY, LAST, TABLE_SUFFIX

COLUMNS = ["goal", "video"]
_WILD = frozenset("*?[")
"""What a pattern has that is no plain name."""
_PLACE_MARKS = (":/", "#")
"""What may follow the name of a file or folder: a topic of a bag, an episode of a dataset."""


@dataclass(frozen=True)
class VideoGoals:
    """The goals of many videos.

    Attributes:
        rows: goal by pattern of each row of a table but that of `*`, in their order.
        otherwise: goal of all other videos; None: that of the model.
        table: the file; empty where there is none, and one goal is for all.
    """

    rows: Mapping[str, str]
    otherwise: str | None
    table: str

    def of(self, name: str) -> str | None:
        """The goal of a video, as `VideoTask` takes it: its own row, else the first pattern that fits, else `*`.

        Raises:
            ValueError: the table has none for it.
        """
        found = self.rows.get(name)
        if found is None:
            fitting = (self.rows[pattern] for pattern in self._patterns if fnmatchcase(name, pattern))
            found = next(fitting, self.otherwise)
        if self.table and found is None:
            raise ValueError(f"no goal for it in {self.table}; add a row for it, or one for {ANY}")
        return found

    def unused(self, names: Sequence[str]) -> list[str]:
        """Patterns of the table that fit none of the videos: perhaps misspelt."""
        known = set(names)
        wild = [each for each in self._patterns if any(fnmatchcase(name, each) for name in names)]
        return [pattern for pattern in self.rows if pattern not in known and pattern not in wild]

    @cached_property
    def _patterns(self) -> list[str]:
        """Of a table with a row for each of many videos, only these have to be compared with every name."""
        return [pattern for pattern in self.rows if not _WILD.isdisjoint(pattern)]


def plan_video_goals(goal: str | None) -> VideoGoals:
    """Finds out which goals videos have.

    Args:
        goal: "last" (each video's own end), what `read_goal` takes, None for the model's own (and "last" where it has
            none), or a .csv table with the columns `video` (path relative to the root, or a pattern in which * stands
            for anything, / too) and `goal` ("last", or a file; a relative path starts in the table's folder).

    Raises:
        FileNotFoundError: no such goal or table.
        ValueError: it is no such table.
    """
    if goal is None or Path(goal).suffix.lower() != TABLE_SUFFIX:
        return VideoGoals({}, None if goal is None else _find(goal, Path.cwd(), ""), "")
    path = Path(goal).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of goals")
    rows: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if sorted(reader.fieldnames or []) != COLUMNS:
            raise ValueError(f"{path}: columns {reader.fieldnames}, {COLUMNS} expected")
        for row in reader:
            where, video = f"{path}, line {reader.line_num}: ", (row["video"] or "").strip()
            if not video:
                raise ValueError(f"{where}no video; give its path, or {ANY} for all others")
            if video in rows:
                raise ValueError(f"{where}{video} has a goal already; give each video one line")
            rows[video] = _find((row["goal"] or "").strip(), path.parent, where)
    otherwise = rows.pop(ANY, None)
    return VideoGoals(rows, otherwise, str(path))


def goal_file(goal: str) -> Path | None:
    """The file or folder that a goal is in; None for "last"."""
    if goal == LAST:
        return None
    ends = [goal, *(goal[: goal.rindex(mark)] for mark in _PLACE_MARKS if mark in goal)]
    return next((Path(end) for end in ends if Path(end).exists()), Path(goal))


def _find(goal: str, folder: Path, where: str) -> str:
    """The goal under an absolute path: a worker may be in another folder."""
    if not goal:
        raise ValueError(f"{where}no goal; give a file, or leave the line away")
    if goal == LAST:
        return goal
    path = os.path.normpath((folder / Path(goal).expanduser()).absolute())
    found = goal_file(path)
    if found is None or not found.exists():
        raise FileNotFoundError(f"{where}{path}: no such goal")
    return path
