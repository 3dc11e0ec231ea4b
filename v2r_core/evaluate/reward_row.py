"""A line of the report, and what all lines are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from v2r_core.evaluate.metrics import Summary, episode_score, order_correlation
from v2r_core.evaluate.reward_plan import Plan, SuiteOptions
from v2r_core.evaluate.reward_stats import UNDEFINED, Estimate, Grouped, grouped_mean
from v2r_core.evaluate.reward_suite import ModelRun

Better = Literal["higher", "lower", "zero", "minus one", ""]

NOT_FOR_STEPS = "not meaningful: a step reward does not measure closeness to a goal"
NOT_FOR_VALUES = "not needed: VOC answers it"
NO_SUCCESS = "needs labels: success, both true and false"
NO_QUALITY = "needs labels: quality, with at least two grades"
NO_DENSE = "needs labels: dense_reward"
NO_STAGES = "needs labels: stages"
NO_SUCCESS_FRAME = "needs labels: success_frame"
NO_STAGE_MODEL = "not meaningful: no embeddings to find subgoals in"
NO_PROGRESS = "not available: nothing to calibrate progress on"
NO_GOAL = "not meaningful: it is given no goal"
NO_TASKS = "needs labels: experts of at least two tasks"
NO_SECOND_GOAL = "needs two experts of a task to take goals from"
NO_SUBSET = "no episodes are scored changed"
NOT_STOCHASTIC = "not meaningful: equal frames always give equal numbers"


@dataclass(frozen=True)
class Row:
    """One metric of one model.

    Attributes:
        section: heading that it belongs under.
        key: for report.json.
        title: for people.
        better: which way is good; empty where none is.
        estimate: NaN where undefined.
        why_not: why there is no number; empty where there is one.
        groups: of each task.
        unit: e.g. "ms"; empty for a pure number.
    """

    section: str
    key: str
    title: str
    better: Better
    estimate: Estimate = UNDEFINED
    why_not: str = ""
    groups: dict[str, float] = field(default_factory=dict)
    unit: str = ""

    def of(self, found: Grouped) -> Row:
        """The row with its number."""
        return replace(self, estimate=found.estimate, groups=found.groups)

    def without(self, why_not: str) -> Row:
        """The row with the reason why it has none."""
        return replace(self, why_not=why_not)


class Judged:
    """The curves of a model beside the labels of the episodes.

    Attributes:
        run, plan, options: what was scored and how.
        kind: of the reward.
        labels: of each episode.
        known: places of the episodes whose success is labelled.
    """

    def __init__(self, run: ModelRun, plan: Plan, options: SuiteOptions) -> None:
        self.run, self.plan, self.options = run, plan, options
        self.kind = run.model.kind
        self.labels = [episode.labels for episode in plan.episodes]
        self.known = [i for i, labels in enumerate(self.labels) if labels.success is not None]

    def task(self, index: int) -> str:
        """What an episode is compared within."""
        return self.labels[index].task or "all"

    def tasks(self, places: Sequence[int]) -> list[str]:
        """`task` of several."""
        return [self.task(index) for index in places]

    def behaviours(self) -> list[str]:
        """Those that are labelled, the best grade first."""
        grades: dict[str, float] = {}
        for labels in self.labels:
            if labels.behaviour is not None:
                grades.setdefault(labels.behaviour, -np.inf if labels.quality is None else labels.quality)
        return sorted(grades, key=lambda name: (-grades[name], name))

    def mean(self, numbers: Sequence[float], places: Sequence[int]) -> Grouped:
        """Mean over episodes, and of each task."""
        return grouped_mean(numbers, self.tasks(places), self.options.seed)

    def scores(self, places: Sequence[int], summary: Summary = "final") -> list[float]:
        """Score of each episode."""
        return [episode_score(self.run.curves[index], self.kind, summary) for index in places]

    def voc(self, places: Sequence[int]) -> list[float]:
        """VOC of each episode; its own last frame does not count where it is the goal."""
        curves = [(index, self.run.curves[index]) for index in places]
        return [order_correlation(curve, np.arange(len(curve)), i in self.run.own_end) for i, curve in curves]

    def for_values(self, row: Row, make: Callable[[], Grouped]) -> Row:
        """The row with its number, which only rewards of kind "value" have."""
        return row.of(make()) if self.kind == "value" else row.without(NOT_FOR_STEPS)


def words(name: str) -> str:
    """A label as people write it."""
    return name.replace("_", " ")
