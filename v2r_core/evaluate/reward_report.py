"""What was measured, as report.json and as lines in the terminal; `reward_html.py` makes report.html of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from v2r_core.evaluate.metrics import episode_score, last_progress
from v2r_core.evaluate.reward_plan import Plan, SuiteOptions
from v2r_core.evaluate.reward_row import Row
from v2r_core.evaluate.reward_rows_changes import make_rows
from v2r_core.evaluate.reward_suite import ModelRun

FORMAT = 1
DIGITS = 6
SOFTWARE = ("v2r-ros", "numpy", "scipy", "scikit-learn", "onnxruntime", "torch", "mujoco", "metaworld")
_NAME_WIDTH = 20
"""Longest model name on one line of the terminal."""


@dataclass(frozen=True)
class ModelReport:
    """One model: its curves and its lines.

    Attributes:
        run: the curves.
        rows: one a metric, in the order of the report.
        control: it is there to be beaten.
    """

    run: ModelRun
    rows: list[Row]
    control: bool


@dataclass(frozen=True)
class RewardReport:
    """Everything of one call of `v2r eval reward`.

    Attributes:
        data: the judged folder.
        plan: what was scored.
        options: how.
        models: rewards first, then controls; each has the same rows.
        left_out: controls that could not be run, and why.
    """

    data: Path
    about: dict[str, str | int | float]
    plan: Plan
    options: SuiteOptions
    models: list[ModelReport]
    left_out: dict[str, str]


def report_model(run: ModelRun, plan: Plan, options: SuiteOptions, control: bool) -> ModelReport:
    """Makes the rows of a model."""
    return ModelReport(run, make_rows(run, plan, options), control)


def as_json(report: RewardReport) -> dict[str, Any]:
    """The content of report.json: plain types only, None for what is undefined."""
    labels = [episode.labels for episode in report.plan.episodes]
    content = {
        "format": FORMAT,
        "software": _versions(),
        "data": {
            "folder": str(report.data),
            "about": report.about,
            "labelled": report.plan.labelled,
            "episodes": len(labels),
            "successes": sum(bool(each.success) for each in labels),
            "success_unknown": sum(each.success is None for each in labels),
            "tasks": sorted({each.task for each in labels if each.task is not None}),
            "behaviours": sorted({each.behaviour for each in labels if each.behaviour is not None}),
            "goals": report.plan.goals.source,
            "goal_episodes": {task: str(episode.path) for task, episode in report.plan.goals.first.items()},
            "subset": [labels[index].file for index in report.plan.subset],
        },
        "options": asdict(report.options),
        "left_out": report.left_out,
        "models": [_model(model, report.plan) for model in report.models],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def write_json(path: Path, report: RewardReport) -> None:
    """Writes report.json, by rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def confusion(run: ModelRun, plan: Plan) -> tuple[list[str], list[list[float]]]:
    """Mean final value of each task's experts under each task's goal.

    Returns:
        The tasks, and for each task of the episode a row with a number for each task of the goal; empty without goals.
    """
    tasks = sorted(run.by_goal)
    matrix = []
    for row in tasks:
        line = []
        for goal in tasks:
            curves = run.by_goal[goal]
            scores = [
                episode_score(curve, run.model.kind)
                for index, curve in curves.items()
                if plan.episodes[index].labels.task == row
            ]
            line.append(float(np.mean(scores)) if scores else math.nan)
        matrix.append(line)
    return tasks, matrix


def show(row: Row, interval: bool = True) -> str:
    """A number for people: "0.973 [0.951, 0.990]", or the reason why there is none."""
    if row.why_not:
        return row.why_not
    estimate = row.estimate
    if not math.isfinite(estimate.value):
        return f"undefined ({estimate.undefined})"
    digits = 1 if row.unit else 3
    text = f"{estimate.value:.{digits}f}{' ' + row.unit if row.unit else ''}"
    if interval and math.isfinite(estimate.low):
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return text + (f" ({estimate.undefined} undefined)" if estimate.undefined else "")


def terminal_lines(report: RewardReport, width: int) -> Text:
    """A line a metric, a column a model: as many models beside each other as fit, the others below.

    Intervals are for rewards, not for controls.

    Args:
        report: what was measured.
        width: of the terminal, in characters.
    """
    rows = lined_up(report.models)
    reasons: list[str] = []
    columns = []
    for place, model in enumerate(report.models):
        cells = [_cell(line[place], reasons, interval=not model.control) for line in rows]
        columns.append(_Column(model.run.model.name, cells))
    first = [line[0] for line in rows]
    margin = 1 + max(len(row.key) for row in first)
    text = Text(f"rewards on {report.data}, {len(report.plan.episodes)} episodes\n\n", no_wrap=True, overflow="fold")
    for group in _side_by_side(columns, width - margin):
        _append_table(text, first, margin, group)
    notes = [f"({place}) {why}" for place, why in enumerate(reasons, 1)]
    return text.append("\n".join([*notes, "report.html says what each metric is"]))


@dataclass(frozen=True)
class _Column:
    """A model in the terminal: name and cells."""

    name: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Cells are never broken, longer names are; two spaces before them."""
        return 2 + max(min(len(self.name), _NAME_WIDTH), *map(len, self.cells))

    def head(self) -> list[str]:
        """The name in pieces."""
        room = self.width - 2
        return [self.name[start : start + room] for start in range(0, len(self.name), room)]


def _side_by_side(columns: list[_Column], room: int) -> list[list[_Column]]:
    """Columns in their order, in groups that fit into the room; at least one each."""
    groups: list[list[_Column]] = []
    left = 0
    for column in columns:
        if not groups or column.width > left:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= column.width
    return groups


def _append_table(text: Text, rows: Sequence[Row], margin: int, columns: list[_Column]) -> None:
    def append(begin: str, cells: Sequence[str], style: str = "") -> None:
        justified = (cell.rjust(column.width) for cell, column in zip(cells, columns, strict=True))
        text.append(begin.ljust(margin) + "".join(justified) + "\n", style)

    heads = [column.head() for column in columns]
    height = max(map(len, heads))
    for line in zip(*([""] * (height - len(head)) + head for head in heads), strict=True):
        append("", line, "bold")
    section = ""
    for place, row in enumerate(rows):
        if row.section != section:
            section = row.section
            text.append(f"{section}\n", "bold")
        append(f" {row.key}", [column.cells[place] for column in columns])
    text.append("\n")


def _cell(row: Row, reasons: list[str], interval: bool) -> str:
    return _mark(row.why_not, reasons) if row.why_not else show(row, interval)


def lined_up(models: Sequence[ModelReport]) -> list[tuple[Row, ...]]:
    """The rows of all models side by side."""
    if len({tuple(row.key for row in model.rows) for model in models}) > 1:
        raise ValueError("models have different rows; make them from one plan")
    return list(zip(*(model.rows for model in models), strict=True))


def _mark(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f"({reasons.index(reason) + 1})"


def _model(model: ModelReport, plan: Plan) -> dict[str, Any]:
    run = model.run
    tasks, matrix = confusion(run, plan)
    return {
        "name": run.model.name,
        "control": model.control,
        "kind": run.model.kind,
        "stochastic": run.model.stochastic,
        "about": run.model.about,
        "seconds": run.seconds,
        "metrics": {row.key: _metric(row) for row in model.rows},
        "goal_confusion": {"tasks": tasks, "mean_final_value": matrix} if tasks else None,
        "episodes": [
            {
                "file": plan.episodes[index].labels.file,
                "score": episode_score(curve, run.model.kind),
                "final_progress": last_progress(curve),
            }
            for index, curve in sorted(run.curves.items())
        ],
    }


def _metric(row: Row) -> dict[str, Any]:
    return {
        "section": row.section,
        "title": row.title,
        "better": row.better,
        "unit": row.unit,
        "why_not": row.why_not or None,
        **asdict(row.estimate),
        "tasks": row.groups,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
