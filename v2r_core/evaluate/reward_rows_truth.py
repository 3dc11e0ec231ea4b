"""Lines about goals, and about what the simulator knows: dense reward, stages, progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from v2r_core.evaluate.metrics import (
    dense_agreement,
    episode_score,
    frame_scores,
    last_progress,
    match_boundaries,
    preferred,
    progress_error,
    reliability,
    true_progress,
)
from v2r_core.evaluate.reward_plan import best_successes, successes
from v2r_core.evaluate.reward_row import (
    NO_DENSE,
    NO_GOAL,
    NO_PROGRESS,
    NO_SECOND_GOAL,
    NO_STAGE_MODEL,
    NO_STAGES,
    NO_SUCCESS,
    NO_SUCCESS_FRAME,
    NO_TASKS,
    NOT_FOR_STEPS,
    Judged,
    Row,
)
from v2r_core.evaluate.reward_stats import NAN, Estimate, Grouped, mean_estimate, spearman


def goal_rows(judged: Judged) -> Iterable[Row]:
    """Goals of other tasks, and another goal of the same task."""
    section = "Goals"
    own = Row(section, "goal_confusion", "own goal scored above those of other tasks", "higher")
    other = Row(section, "goal_choice", "same ranking with another goal of the task (Spearman)", "higher")
    if not judged.run.model.needs_goal:
        yield from (own.without(NO_GOAL), other.without(NO_GOAL))
        return
    if len(judged.run.by_goal) < 2:
        yield own.without(NO_TASKS)
    else:
        places = list(next(iter(judged.run.by_goal.values())))
        yield own.of(judged.mean([_own_goal_wins(judged, index) for index in places], places))
    tasks = sorted({judged.task(index) for index in judged.run.second_goal})
    if not tasks:
        yield other.without(NO_SECOND_GOAL)
        return
    found = {task: _goal_agreement(judged, task) for task in tasks}
    yield other.of(Grouped(mean_estimate(list(found.values()), judged.options.seed), found))


def _own_goal_wins(judged: Judged, index: int) -> float:
    final = {task: episode_score(curves[index], judged.kind) for task, curves in judged.run.by_goal.items()}
    own = final.get(judged.task(index), NAN)
    return float(np.mean([preferred(own, score) for task, score in final.items() if task != judged.task(index)]))


def _goal_agreement(judged: Judged, task: str) -> float:
    places = [index for index in judged.run.second_goal if judged.task(index) == task]
    other = [episode_score(judged.run.second_goal[index], judged.kind) for index in places]
    return spearman(np.array(judged.scores(places)), np.array(other))


def dense_rows(judged: Judged) -> Iterable[Row]:
    """Agreement with the simulator's reward of each frame."""
    section = "Against the simulator's dense reward"
    places = [i for i, labels in enumerate(judged.labels) if labels.dense_reward]
    what = "value" if judged.kind == "value" else "step reward"
    rows = (
        Row(section, "dense_spearman", f"rank correlation of {what} and dense reward, all frames", "higher"),
        Row(section, "dense_r2", f"R2 of {what} and dense reward, all frames", "higher"),
    )
    if not places:
        yield from (row.without(NO_DENSE) for row in rows)
        return
    found: dict[str, tuple[float, float]] = {}
    for task in dict.fromkeys(judged.tasks(places)):
        own = [index for index in places if judged.task(index) == task]
        truths = [np.array([NAN if r is None else r for r in judged.labels[i].dense_reward or []]) for i in own]
        found[task] = dense_agreement([frame_scores(judged.run.curves[i], judged.kind) for i in own], truths)
    for place, row in enumerate(rows):
        each = {task: numbers[place] for task, numbers in found.items()}
        yield row.of(Grouped(mean_estimate(list(each.values()), judged.options.seed), each))


def subgoal_rows(judged: Judged) -> Iterable[Row]:
    """UVD's boundaries against stage marks."""
    section = f"Subgoals (UVD on its embeddings, within {judged.options.tolerance} frames)"
    rows = (
        Row(section, "boundary_f1", "F1 of subgoal boundaries", "higher"),
        Row(section, "boundary_precision", "precision", "higher"),
        Row(section, "boundary_recall", "recall", "higher"),
        Row(section, "boundary_count_error", "error in the number of boundaries", "lower"),
    )
    marked = [i for i in successes(judged.plan) if judged.labels[i].stages is not None]
    if not marked or not judged.run.boundaries:
        yield from (row.without(NO_STAGE_MODEL if marked else NO_STAGES) for row in rows)
        return
    found = [
        match_boundaries(judged.run.boundaries[i], judged.labels[i].stages or [], judged.options.tolerance)
        for i in marked
    ]
    numbers = (
        [match.f1 for match in found],
        [match.precision for match in found],
        [match.recall for match in found],
        [float(match.count_error) for match in found],
    )
    for row, each in zip(rows, numbers, strict=True):
        yield row.of(judged.mean(each, marked))


def progress_rows(judged: Judged) -> Iterable[Row]:
    """Progress against time until success, and against success."""
    section = "Calibration of progress"
    rows = (
        Row(section, "progress_error", "mean error of progress on the best successes", "lower"),
        Row(section, "progress_ece", "calibration error of progress, frames in 10 bins", "lower"),
        Row(section, "success_brier", "Brier score of the final progress as a chance of success", "lower"),
    )
    has_progress = any(np.isfinite(curve.progress).any() for curve in judged.run.curves.values())
    if judged.kind != "value" or not has_progress:
        yield from (row.without(NOT_FOR_STEPS if judged.kind != "value" else NO_PROGRESS) for row in rows)
        return
    timed = [i for i in best_successes(judged.plan) if judged.labels[i].success_frame is not None]
    if not timed:
        yield from (row.without(NO_SUCCESS_FRAME) for row in rows[:2])
    else:
        curves = [judged.run.curves[i].progress for i in timed]
        truths = [
            true_progress(len(p), judged.labels[i].success_frame or 0) for p, i in zip(curves, timed, strict=True)
        ]
        errors = [progress_error(*pair) for pair in zip(curves, truths, strict=True)]
        yield rows[0].of(judged.mean(errors, timed))
        table = reliability(np.concatenate(curves), np.concatenate(truths))
        count = int(table.counts.sum())
        # Bins of all frames: there is no number of each episode to resample.
        yield replace(rows[1], estimate=Estimate(table.error, NAN, NAN, count, sum(map(len, curves)) - count))
    if not judged.known:
        yield rows[2].without(NO_SUCCESS)
        return
    squares = [(last_progress(judged.run.curves[i]) - float(judged.labels[i].success or 0)) ** 2 for i in judged.known]
    yield rows[2].of(judged.mean(squares, judged.known))
