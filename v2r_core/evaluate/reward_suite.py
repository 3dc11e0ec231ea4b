"""Runs a reward over episodes, unchanged and changed, and keeps its curves: what `reward_rows.py` makes numbers of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from v2r_core.evaluate.cost import Cost, measure_cost
from v2r_core.evaluate.episodes import Episode
from v2r_core.evaluate.perturb import (
    PICTURES,
    RATES,
    covered_camera,
    reversed_order,
    rewound_order,
    shuffled_order,
)
from v2r_core.evaluate.reward_plan import Goals, Plan, SuiteOptions, best_successes, successes
from v2r_core.evaluate.scored_models import Rows, ScoredModel
from v2r_core.rewards.reward import RewardCurve
from v2r_core.video.resize import Frame

Indices = NDArray[np.int64]
Ticks = Callable[[int, int], None]

OTHER_GOALS = 2
"""Experts of each task that are scored with the goals of the other tasks."""


@dataclass
class ModelRun:
    """The curves of one model; keys are places in the plan's episodes.

    Attributes:
        model: what was run.
        own_end: whose goal is its own last frame.
        curves: of the episodes as they are.
        reordered: of reversed, shuffled and rewound clips.
        orders: which frames these are, by the same keys.
        changed: with changed pictures and frame rates.
        kept: which frames these are, by the same keys; pictures keep all.
        by_goal: final value of experts, by task of the goal.
        second_goal: with another goal of the same task.
        still: the first frame all the time.
        covered: a camera under a cap.
        seeds: with other seeds, the first one included.
        boundaries: found in successes with stage marks.
        cost: speed and memory; None for too few frames.
        seconds: wall time of all of it.
    """

    model: ScoredModel
    own_end: set[int] = field(default_factory=set)
    curves: dict[int, RewardCurve] = field(default_factory=dict)
    reordered: dict[str, dict[int, RewardCurve]] = field(default_factory=dict)
    orders: dict[str, dict[int, Indices]] = field(default_factory=dict)
    changed: dict[str, dict[int, RewardCurve]] = field(default_factory=dict)
    kept: dict[str, dict[int, Indices]] = field(default_factory=dict)
    by_goal: dict[str, dict[int, RewardCurve]] = field(default_factory=dict)
    second_goal: dict[int, RewardCurve] = field(default_factory=dict)
    still: dict[int, RewardCurve] = field(default_factory=dict)
    covered: dict[int, RewardCurve] = field(default_factory=dict)
    seeds: dict[int, list[RewardCurve]] = field(default_factory=dict)
    boundaries: dict[int, list[int]] = field(default_factory=dict)
    cost: Cost | None = None
    seconds: float = 0.0


def run_model(
    model: ScoredModel, plan: Plan, options: SuiteOptions, on_progress: Ticks = lambda done, total: None
) -> ModelRun:
    """Scores everything of the plan with one model.

    Args:
        model: a reward or a control.
        plan: see `make_plan`.
        options: see `SuiteOptions`.
        on_progress: gets the number of episodes done, and of all.

    Raises:
        VideoError: an episode cannot be read. It is not skipped: results on other data could not be compared.
    """
    start = time.perf_counter()
    run = ModelRun(model)
    goals = _GoalRows(model, plan.goals)
    rows: dict[int, Rows] = {}
    for index, episode in enumerate(plan.episodes):
        frames = read_frames(episode)
        rows[index] = model.embed(frames)
        goal = goals.first(episode, rows[index])
        if goal is rows[index]:
            run.own_end.add(index)
        run.curves[index] = model.score(rows[index], goal)
        if index in plan.subset:
            _change_pictures(run, index, frames, goal, options)
        on_progress(index + 1, len(plan.episodes))
    for index in _reordered(run, plan):
        _reorder(run, index, rows[index], goals.first(plan.episodes[index], rows[index]), options)
    for index in plan.subset:
        _rerate(run, index, rows[index], goals.first(plan.episodes[index], rows[index]), options)
    _find_boundaries(run, plan, rows, options)
    if model.needs_goal and plan.goals.first:
        _confuse_goals(run, plan, rows, goals)
    frames = read_frames(plan.episodes[0])
    run.cost = measure_cost(model, frames, goals.first(plan.episodes[0], rows[0]))
    run.seconds = time.perf_counter() - start
    return run


def read_frames(episode: Episode) -> list[Frame]:
    """All frames of an episode."""
    with episode.open() as video:
        return list(video)


class _GoalRows:
    """Embedded demonstrations, each made once."""

    def __init__(self, model: ScoredModel, goals: Goals) -> None:
        self._model, self._goals = model, goals
        self._rows: dict[Path, Rows] = {}

    def of(self, episode: Episode) -> Rows:
        if episode.path not in self._rows:
            self._rows[episode.path] = self._model.embed(read_frames(episode))
        return self._rows[episode.path]

    def first(self, episode: Episode, own: Rows) -> Rows | None:
        if not self._model.needs_goal:
            return None
        task = episode.labels.task
        return self.of(self._goals.first[task]) if task is not None and task in self._goals.first else own


def _change_pictures(
    run: ModelRun, index: int, frames: Sequence[Frame], goal: Rows | None, options: SuiteOptions
) -> None:
    model, count = run.model, len(frames)
    for name, change in PICTURES.items():
        run.changed.setdefault(name, {})[index] = model.score(model.embed([change(frame) for frame in frames]), goal)
        run.kept.setdefault(name, {})[index] = np.arange(count)
    height, width = frames[0].shape[:2]
    cover = model.embed(covered_camera(count, height, width, options.seed))
    run.covered[index] = model.score(cover, goal)
    run.still[index] = model.score(np.repeat(model.embed(frames[:1]), count, axis=0), goal)


def _reordered(run: ModelRun, plan: Plan) -> list[int]:
    """Step rewards run a large network at every frame: they get the bounded subset."""
    chosen = best_successes(plan)
    return chosen if run.model.kind == "value" else [index for index in plan.subset if index in chosen]


def _reorder(run: ModelRun, index: int, rows: Rows, goal: Rows | None, options: SuiteOptions) -> None:
    count = len(rows)
    orders = {
        "reversed": reversed_order(count),
        "shuffled": shuffled_order(count, options.seed + index),
        "rewound": rewound_order(count),
    }
    for name, order in orders.items():
        run.reordered.setdefault(name, {})[index] = run.model.score(rows[order], goal)
        run.orders.setdefault(name, {})[index] = order


def _rerate(run: ModelRun, index: int, rows: Rows, goal: Rows | None, options: SuiteOptions) -> None:
    for name, rate in RATES.items():
        kept = rate(len(rows))
        run.changed.setdefault(name, {})[index] = run.model.score(rows[kept], goal)
        run.kept.setdefault(name, {})[index] = kept
    if run.model.stochastic:
        others = [run.model.score(rows, goal, seed) for seed in range(1, options.seeds)]
        run.seeds[index] = [run.curves[index], *others]


def _find_boundaries(run: ModelRun, plan: Plan, rows: Mapping[int, Rows], options: SuiteOptions) -> None:
    for index in successes(plan):
        if plan.episodes[index].labels.stages is not None:
            found = run.model.boundaries(rows[index], options.min_interval)
            if found is not None:
                run.boundaries[index] = found


def _confuse_goals(run: ModelRun, plan: Plan, rows: Mapping[int, Rows], goals: _GoalRows) -> None:
    experts: dict[str, list[int]] = {}
    for index in best_successes(plan):
        experts.setdefault(str(plan.episodes[index].labels.task), []).append(index)
    judged = [index for each in experts.values() for index in each[:OTHER_GOALS]]
    for task, episode in plan.goals.first.items():
        goal = goals.of(episode)
        run.by_goal[task] = {index: run.model.score(rows[index], goal) for index in judged}
    for task, episode in plan.goals.second.items():
        goal = goals.of(episode)
        same = [index for index, each in enumerate(plan.episodes) if each.labels.task == task]
        run.second_goal |= {index: run.model.score(rows[index], goal) for index in same}
