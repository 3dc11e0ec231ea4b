"""Which goal each episode of a recording has."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v2r_core.deploy.goals import camera_files, read_goal
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.goal import Goal

LAST = "last"
TABLE_SUFFIX = ".csv"
COLUMNS = ["episode", "goal"]
ANY = "*"
BUNDLE = "bundle"


@dataclass(frozen=True)
class OneGoal:
    """All episodes have the goal that the scorer was given; also where the reward needs none.

    Attributes:
        source: where it came from; empty without a goal.
    """

    source: str


@dataclass(frozen=True)
class OwnEnds:
    """Each episode is compared with its own last frame, and its progress is calibrated on itself."""


@dataclass(frozen=True)
class GoalTable:
    """Episodes have the goals of a table.

    Attributes:
        files: goal file by number of the episode, from 0.
        otherwise: of all other episodes; None: they have no goal.
    """

    files: dict[int, str]
    otherwise: str | None

    def source(self, episode: int) -> str | None:
        """The goal file of an episode; None if it has none."""
        return self.files.get(episode, self.otherwise)


GoalPlan = OneGoal | OwnEnds | GoalTable


class GoalReader:
    """Goals by file; the newest one is kept, since neighbouring episodes often have the same."""

    def __init__(self, scorer: Scorer, cameras: Sequence[str] = ("",)) -> None:
        """Reads goals for a scorer of cameras with these names."""
        self._scorer, self._cameras = scorer, cameras
        self._newest: tuple[str, Goal] | None = None

    def read(self, source: str) -> Goal:
        """See `read_goal`."""
        if self._newest is None or self._newest[0] != source:
            self._newest = source, read_goal(self._scorer, source, self._cameras)
        return self._newest[1]


def plan_goals(scorer: Scorer, goal: str | None, cameras: Sequence[str] = ("",)) -> GoalPlan:
    """Finds out which goals episodes have, and puts it in force if it is one for all.

    Args:
        scorer: what will score.
        goal: "last" (each episode's own end), a .csv table, what `read_goal` takes, or None for the bundle's own, and
            "last" where it has none.
        cameras: names of the scorer's cameras.

    Raises:
        FileNotFoundError: no such goal, or one of the table is not there.
        ValueError: it is no goal, the table is no such table, the reward takes no goal, or the bundle's own is for
            another number of cameras.
    """
    if not scorer.reward.needs_goal:
        if goal is not None:
            raise ValueError(
                f"--goal {goal}: the reward {scorer.reward_name!r} compares with no goal; leave --goal away, or take "
                "--reward vip"
            )
        return OneGoal("")
    if goal is None and scorer.goal is not None:
        return OneGoal(BUNDLE)
    if goal is None and scorer.bundle.manifest.goal and scorer.reward_name != "pixel":
        raise ValueError(
            f"the goal of {scorer.bundle.manifest.name} is for another number of cameras than {len(cameras)}; give one "
            f"with --goal, e.g. {LAST}"
        )
    if goal is None or goal == LAST:
        return OwnEnds()
    if Path(goal).suffix.lower() == TABLE_SUFFIX:
        return read_table(Path(goal).expanduser(), cameras)
    scorer.set_goal(read_goal(scorer, goal, cameras))
    return OneGoal(goal)


def read_table(path: Path, cameras: Sequence[str] = ("",)) -> GoalTable:
    """Reads a table with the columns `episode` and `goal`.

    `episode` is a number from 0 or `*` for all that have no line of their own; `goal` is what `read_goal` takes, and a
    relative path starts in the table's folder.

    Args:
        path: a .csv file.
        cameras: names of the cameras that the goals are for.

    Raises:
        FileNotFoundError: no such table, or a goal of it is not there.
        ValueError: other columns, a number that is none, or an episode that is there twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of goals")
    files: dict[int, str] = {}
    otherwise: str | None = None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        if sorted(rows.fieldnames or []) != COLUMNS:
            raise ValueError(f"{path}: columns {rows.fieldnames}, {COLUMNS} expected")
        for row in rows:
            where, episode = f"{path}, line {rows.line_num}", (row["episode"] or "").strip()
            source = _goal_file(path.parent, (row["goal"] or "").strip(), where, cameras)
            if episode == ANY and otherwise is None:
                otherwise = source
            elif episode.isdecimal() and int(episode) not in files:
                files[int(episode)] = source
            elif episode == ANY or episode.isdecimal():
                raise ValueError(f"{where}: episode {episode} has a goal already; give each episode one line")
            else:
                raise ValueError(f"{where}: episode {episode!r}; a number from 0, or {ANY}, expected")
    return GoalTable(files, otherwise)


def _goal_file(folder: Path, name: str, where: str, cameras: Sequence[str]) -> str:
    if not name:
        raise ValueError(f"{where}: no goal; give a file, or leave the line away")
    goal = str(folder / Path(name).expanduser())
    for file in camera_files(goal, cameras):
        # A bag's topic may follow its name.
        if not Path(file).exists() and not Path(file.partition(":/")[0]).exists():
            raise FileNotFoundError(f"{where}: {file}: no such goal")
    return goal
