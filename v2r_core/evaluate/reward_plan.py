"""What is scored: which episodes, with which goals, and which of them changed too.

Where goals come from, for a reward that needs one and brings none: the end of an expert's episode of the same task in
the folder of goals (the training experts), and that episode as the demonstration to calibrate on. Where that folder
has no such task: of the expert with the lowest seed in the judged folder, which is then not judged. Where nothing says
which episodes are of one task: of the judged episode itself, whose last frame is then left out of VOC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from v2r_core.evaluate.episodes import Episode, EpisodeSet


@dataclass(frozen=True)
class SuiteOptions:
    """How much is scored, and how it is judged.

    Attributes:
        per_group: most episodes of each task and behaviour, chosen by the seed; 0 for all.
        perturbed: episodes that are scored changed too; half of them successes, spread over the tasks.
        seeds: sampling seeds of a stochastic reward.
        tolerance: frames that a subgoal boundary may be off.
        min_interval: shortest stage in frames that UVD looks for.
        seed: of what is chosen and of the bootstrap.
    """

    per_group: int = 0
    perturbed: int = 20
    seeds: int = 4
    tolerance: int = 5
    min_interval: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("per_group", 0), ("perturbed", 0), ("seeds", 2), ("tolerance", 0), ("min_interval", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, at least {least} expected")


@dataclass(frozen=True)
class Goals:
    """Where the goals are.

    Attributes:
        first: for each task the episode whose end is the goal.
        second: another one of the same task, where there is one: does the choice matter?
        source: how they were found, for the report.
    """

    first: Mapping[str, Episode]
    second: Mapping[str, Episode]
    source: str


@dataclass(frozen=True)
class Plan:
    """What is scored.

    Attributes:
        episodes: that are judged.
        goals: of their tasks.
        subset: places in `episodes` that are scored changed too.
        labelled: whether there are labels at all.
    """

    episodes: tuple[Episode, ...]
    goals: Goals
    subset: tuple[int, ...]
    labelled: bool


def find_goals(goals: EpisodeSet | None, data: EpisodeSet) -> Goals:
    """Finds an expert of each task of the data; see the docstring of this file."""
    first: dict[str, Episode] = {}
    second: dict[str, Episode] = {}
    inside = []
    for task in sorted({episode.labels.task for episode in data.episodes if episode.labels.task is not None}):
        outside = _experts(goals, task)
        own = [] if outside else _experts(data, task)
        found = outside or own
        if found:
            first[task] = found[0]
        if len(outside) > 1:
            second[task] = outside[1]
        inside += [task] if own else []
    if not first:
        return Goals({}, {}, "each episode's own last frame, which is left out of VOC: no labels name an expert")
    source = f"last frame of an expert's episode of the same task in {goals.folder if goals else data.folder}"
    if inside and goals is not None:
        source += f"; for {', '.join(inside)} in {data.folder}, and not judged there"
    return Goals(first, second, source)


def make_plan(data: EpisodeSet, goals: EpisodeSet | None, options: SuiteOptions) -> Plan:
    """Chooses what is scored.

    Raises:
        ValueError: nothing is left to judge.
    """
    found = find_goals(goals, data)
    used = {episode.path.resolve() for episode in (*found.first.values(), *found.second.values())}
    left = [episode for episode in data.episodes if episode.path.resolve() not in used]
    if not left:
        raise ValueError(f"{data.folder}: every episode in it is used as a goal; give other episodes as --goals")
    rng = np.random.default_rng([options.seed, 1])
    groups = _grouped(left, lambda episode: (episode.labels.task, episode.labels.behaviour))
    limit = options.per_group or len(left)
    chosen = sorted(index for group in groups for index in rng.permutation(group)[:limit].tolist())
    episodes = tuple(left[index] for index in chosen)
    return Plan(episodes, found, _subset(episodes, options), data.labelled)


def successes(plan: Plan) -> list[int]:
    """Places of the episodes that succeed; of all of them where nobody knows."""
    known = [index for index, episode in enumerate(plan.episodes) if episode.labels.success is not None]
    return [i for i in known if plan.episodes[i].labels.success] if known else list(range(len(plan.episodes)))


def best_successes(plan: Plan) -> list[int]:
    """Those of the best grade among `successes`."""
    chosen = successes(plan)
    grades = [plan.episodes[index].labels.quality for index in chosen]
    best = max((grade for grade in grades if grade is not None), default=None)
    return [index for index, grade in zip(chosen, grades, strict=True) if grade == best]


def _experts(episodes: EpisodeSet | None, task: str) -> list[Episode]:
    """Successes of a task, best grade first, then by seed."""
    found = [each for each in (episodes.episodes if episodes else ()) if each.labels.task == task]
    found = [each for each in found if each.labels.success]
    best = max((each.labels.quality or 0 for each in found), default=0)
    found = [each for each in found if (each.labels.quality or 0) == best]
    return sorted(found, key=lambda each: (each.labels.seed or 0, each.labels.file))


def _subset(episodes: Sequence[Episode], options: SuiteOptions) -> tuple[int, ...]:
    """Half successes of the best grade, half failures, in turn over the tasks."""
    rng = np.random.default_rng([options.seed, 2])
    graded = [episode.labels.quality for episode in episodes if episode.labels.success]
    best = max((grade for grade in graded if grade is not None), default=None)
    good = [i for i, each in enumerate(episodes) if each.labels.success and each.labels.quality == best]
    bad = [i for i, each in enumerate(episodes) if each.labels.success is False]
    if not good and not bad:
        good = list(range(len(episodes)))
    chosen: list[int] = []
    for pool, number in ((good, options.perturbed - options.perturbed // 2 * bool(bad)), (bad, options.perturbed // 2)):
        shuffled = [pool[place] for place in rng.permutation(len(pool))]
        queues = [[shuffled[k] for k in group] for group in _grouped([episodes[i] for i in shuffled], _task_of)]
        turns = [queue[turn] for turn in range(len(shuffled)) for queue in queues if turn < len(queue)]
        chosen += turns[:number]
    return tuple(sorted(chosen))


def _task_of(episode: Episode) -> str | None:
    return episode.labels.task


def _grouped(episodes: Sequence[Episode], key: Callable[[Episode], object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for index, episode in enumerate(episodes):
        groups.setdefault(key(episode), []).append(index)
    return list(groups.values())
