"""report.html: one file, opens offline, asks nothing of anybody: tables that can be sorted, curves over film strips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from v2r_core.evaluate.reward_figures import bar_plot, choose_shown, curve_plot, film_strip
from v2r_core.evaluate.reward_report import ModelReport, RewardReport, confusion, lined_up, show
from v2r_core.evaluate.reward_row import Row, words
from v2r_core.page import facts, heading, make_page, table, write_page
from v2r_core.plot import LINES

HEADLINES = (
    "voc_success",
    "bumps",
    "rewind_detected",
    "auroc",
    "average_precision",
    "pair_accuracy",
    "goal_confusion",
    "dense_spearman",
    "boundary_f1",
    "progress_error",
    "p50_ms",
)
"""Columns of the first table."""
DRAWN = ("voc_success", "auroc", "pair_accuracy", "bumps")
BY_TASK = ("voc_success", "auroc", "pair_accuracy", "dense_spearman")

_STYLE = """
.rewards { font-weight: 600; }
.strip { display: block; border-left: 8px solid; margin: 0 0 .2rem; }
.strip img { display: block; width: 100%; max-width: 36rem; }
.strip figcaption { font-size: .85rem; padding-left: .4rem; }
.plots { display: flex; flex-wrap: wrap; gap: .8rem; } .plots figure { max-width: 26rem; }
.plots figcaption { font-size: .9rem; font-weight: 600; }
"""


def write_html(path: Path, report: RewardReport) -> None:
    """Writes the report, by rename."""
    write_page(path, make_html(report))


def make_html(report: RewardReport) -> str:
    """The whole file."""
    parts = [
        *_data(report),
        *_headlines(report),
        *_all_metrics(report.models),
        *_by_task(report.models),
        *_confusions(report),
        *_episodes(report),
        *_reading(),
    ]
    return make_page(f"Rewards on {report.data.name or report.data}", parts, _STYLE)


def _data(report: RewardReport) -> Iterable[str]:
    labels = [episode.labels for episode in report.plan.episodes]
    success = sum(bool(each.success) for each in labels)
    unknown = sum(each.success is None for each in labels)
    about = {
        "folder": str(report.data),
        "episodes": f"{len(labels)}, {success} of them successes"
        + (f", {unknown} without a label for success" if unknown else ""),
        "labels": "yes" if report.plan.labelled else "none: metrics that need labels have no number",
        "goals": report.plan.goals.source,
        "scored changed too": f"{len(report.plan.subset)} episodes, chosen with seed {report.options.seed}",
    }
    about |= {f"made: {key}": str(value) for key, value in report.about.items()}
    about |= {f"left out: {name}": why for name, why in report.left_out.items()}
    yield "<h2>What was judged</h2>" + facts(about)
    for model in report.models:
        role = "control" if model.control else "reward"
        standing = {"kind": model.run.model.kind, **model.run.model.about, "seconds": f"{model.run.seconds:.0f}"}
        yield f"<details><summary>{escape(model.run.model.name)} ({role})</summary>{facts(standing)}</details>"


def _headlines(report: RewardReport) -> Iterable[str]:
    models = report.models
    rows = {row.key: row for row in models[0].rows}
    heads = [heading(rows[key].title, _direction(rows[key])) for key in HEADLINES]
    lines = []
    for model in models:
        own = {row.key: row for row in model.rows}
        cells = "".join(_cell(own[key]) for key in HEADLINES)
        kind = "" if model.control else ' class="rewards"'
        lines.append(f"<tr{kind}>{_name_cell(model)}{cells}</tr>")
    yield "<h2>At a glance</h2><p>A column's button sorts by it. In brackets: 95 % bootstrap intervals.</p>"
    head = heading("model") + "".join(heads)
    yield table("Headline numbers", head, lines, sortable=True)
    names = [model.run.model.name for model in models]
    rewards = sum(not model.control for model in models)
    plots = []
    for key in DRAWN:
        found = [next(row for row in model.rows if row.key == key) for model in models]
        numbers = [(row.estimate.value, row.estimate.low, row.estimate.high) for row in found]
        text = "; ".join(f"{name}: {show(row)}" for name, row in zip(names, found, strict=True))
        alt = escape(f"{found[0].title}. {text}", quote=True)
        plots.append(f'<figure><img alt="{alt}" src="{bar_plot(names, numbers, rewards, found[0].title)}"></figure>')
    yield f'<div class="plots">{"".join(plots)}</div>'


def _all_metrics(models: Sequence[ModelReport]) -> Iterable[str]:
    yield "<h2>All metrics</h2>"
    head = "".join(heading(name, sorts=False) for name in ("metric", *(model.run.model.name for model in models)))
    lines, section = [], ""
    for rows in lined_up(models):
        if rows[0].section != section:
            section = rows[0].section
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(models) + 1}">{escape(section)}</th></tr>')
        cells = "".join(_cell(row) for row in rows)
        lines.append(f'<tr><th scope="row">{escape(rows[0].title)}{_direction(rows[0])}</th>{cells}</tr>')
    yield table("Each metric of each model", head, lines)


def _by_task(models: Sequence[ModelReport]) -> Iterable[str]:
    yield "<h2>By task</h2>"
    for key in BY_TASK:
        found = [next(row for row in model.rows if row.key == key) for model in models]
        tasks = sorted({task for row in found for task in row.groups})
        if not tasks:
            continue
        head = "".join(heading(name) for name in ("task", *(model.run.model.name for model in models)))
        lines = []
        for task in tasks:
            cells = "".join(_number_cell(row.groups.get(task, math.nan)) for row in found)
            lines.append(f'<tr><th scope="row" data-value="{escape(task, quote=True)}">{escape(task)}</th>{cells}</tr>')
        yield table(found[0].title, head, lines, sortable=True)


def _confusions(report: RewardReport) -> Iterable[str]:
    shown = [model for model in report.models if model.run.by_goal]
    if not shown:
        return
    yield "<h2>Goals of other tasks</h2><p>Mean final value of experts: a row a task of the episode, a column a goal. "
    yield "The best goal of each row is bold; it should be on the diagonal, which is framed.</p>"
    for model in shown:
        tasks, matrix = confusion(model.run, report.plan)
        head = "".join(heading(name, sorts=False) for name in ("episode", *tasks))
        lines = []
        for place, (task, line) in enumerate(zip(tasks, matrix, strict=True)):
            best = int(np.nanargmax(line)) if np.isfinite(line).any() else -1
            cells = "".join(_confusion_cell(n, column == best, column == place) for column, n in enumerate(line))
            lines.append(f'<tr><th scope="row">{escape(task)}</th>{cells}</tr>')
        goals = table(model.run.model.name, head, lines)
        yield f"<details><summary>{escape(model.run.model.name)}</summary>{goals}</details>"


def _confusion_cell(number: float, best: bool, diagonal: bool) -> str:
    text = f"{number:.3g}" if math.isfinite(number) else "undefined"
    style = ' style="outline: 2px solid #0072b2; outline-offset: -2px"' if diagonal else ""
    return f"<td{style}>{'<strong>' + text + '</strong>' if best else text}</td>"


def _episodes(report: RewardReport) -> Iterable[str]:
    yield "<h2>Curves over film strips</h2><p>One seed of each task; the colour of a strip is that of its curve.</p>"
    for number, shown in enumerate(choose_shown(report.plan)):
        strips = []
        for place, name, colour in zip(shown.places, shown.names, LINES, strict=False):
            episode = report.plan.episodes[place]
            alt = escape(f"{shown.task}, {words(name)}: eight frames from start to end", quote=True)
            text = escape(f"{words(name)}{_outcome(episode.labels.success)}")
            strips.append(
                f'<figure class="strip" style="border-color: {colour}"><figcaption>{text}</figcaption>'
                f'<img alt="{alt}" src="{film_strip(episode)}"></figure>'
            )
        plots = []
        for model in report.models:
            alt = escape(f"{model.run.model.name} on {shown.task}: {', '.join(map(words, shown.names))}", quote=True)
            plots.append(
                f"<figure><figcaption>{escape(model.run.model.name)}</figcaption>"
                f'<img alt="{alt}" src="{curve_plot(model.run, shown)}"></figure>'
            )
        opened = " open" if number == 0 else ""
        yield f"<details{opened}><summary>{escape(shown.task)}</summary>{''.join(strips)}"
        yield f'<div class="plots">{"".join(plots)}</div></details>'


def _outcome(success: bool | None) -> str:
    return "" if success is None else ": success" if success else ": failure"


def _reading() -> Iterable[str]:
    yield """<h2>How to read it</h2>
<p>VOC is Spearman's correlation of value and time: 1 if the value rises from frame to frame. It says nothing about
success: an episode that fails in good order has a high one too, so look at AUROC beside it. A step reward scores each
step by itself, and what needs a value is not computed for it. AUROC, average precision and pairs compare episodes of
one task with each other, with ties counted half, and are then averaged over tasks. Intervals are from 1000 bootstrap
resamples of tasks and of episodes inside a task. A number that is undefined, such as the correlation of a constant
curve, is counted and shown as undefined, never left out silently. The control <em>frame number</em> looks at no frame:
what it reaches is what a metric gives away for free.</p>"""


def _name_cell(model: ModelReport) -> str:
    name = model.run.model.name
    role = " <small>control</small>" if model.control else ""
    return f'<th scope="row" data-value="{escape(name, quote=True)}">{escape(name)}{role}</th>'


def _cell(row: Row) -> str:
    value = row.estimate.value
    if row.why_not or not math.isfinite(value):
        return f"<td><small>{escape(show(row))}</small></td>"
    number, _, rest = show(row).partition(" [")
    if not rest:
        return f'<td data-value="{value:.6g}">{escape(number)}</td>'
    return f'<td data-value="{value:.6g}">{escape(number)}<small>[{escape(rest)}</small></td>'


def _number_cell(value: float) -> str:
    if not math.isfinite(value):
        return "<td><small>undefined</small></td>"
    return f'<td data-value="{value:.6g}">{value:.3f}</td>'


def _direction(row: Row) -> str:
    words_for = {"higher": "higher is better", "lower": "lower is better", "zero": "should be 0"}
    text = words_for.get(row.better, "should be -1" if row.better == "minus one" else "")
    return f" <small>{text}</small>" if text else ""
