"""Lines about order in time, success and quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from v2r_core.evaluate.metrics import Summary, episode_score, falls_in_rewind, order_correlation, preferred
from v2r_core.evaluate.reward_plan import best_successes, successes
from v2r_core.evaluate.reward_row import (
    NO_QUALITY,
    NO_SUCCESS,
    NOT_FOR_STEPS,
    NOT_FOR_VALUES,
    Better,
    Judged,
    Row,
    words,
)
from v2r_core.evaluate.reward_stats import Estimate, Grouped, grouped_pairs, grouped_precision
from v2r_core.rewards.quality import bumps
from v2r_core.rewards.reward import RewardCurve


def order_rows(judged: Judged) -> Iterable[Row]:
    """VOC of episodes as they are, and bumps."""
    section = "Order in time (VOC)"
    good = successes(judged.plan)
    title = "VOC, successes" if judged.known else "VOC, all episodes (success is not labelled)"
    yield judged.for_values(Row(section, "voc_success", title, "higher"), partial(_voc, judged, good))
    for behaviour in judged.behaviours():
        places = [i for i, labels in enumerate(judged.labels) if labels.behaviour == behaviour]
        direction: Better = "higher" if set(places) <= set(good) else ""
        row = Row(section, f"voc_{behaviour}", f"VOC, {words(behaviour)}", direction)
        yield judged.for_values(row, partial(_voc, judged, places))
    best = best_successes(judged.plan)
    yield judged.for_values(
        Row(section, "bumps", "steps away from the goal, best successes", "lower"),
        lambda: judged.mean([bumps(judged.run.curves[index].value) for index in best], best),
    )


def reordered_rows(judged: Judged) -> Iterable[Row]:
    """Reversed, shuffled and rewound clips."""
    section = "Changed order, best successes"
    better: dict[str, Better] = {"reversed": "minus one", "shuffled": "zero", "rewound": "higher"}
    for name, direction in better.items():
        text = f"VOC, {name}" + (", against the place in the original" if name == "rewound" else "")
        row = Row(section, f"voc_{name}", text, direction)
        yield judged.for_values(row, partial(_over, judged, name, partial(_voc_in_order, judged, name)))
    yield judged.for_values(
        Row(section, "rewind_detected", "rewinds whose value falls", "higher"),
        partial(_over, judged, "rewound", partial(_falls, judged)),
    )
    for name in better:
        title = f"original preferred to {name}, by mean reward"
        row = Row(section, f"preferred_to_{name}", title, "higher")
        if judged.kind == "value":
            yield row.without(NOT_FOR_VALUES)
        else:
            yield row.of(_over(judged, name, partial(_preferred, judged)))


def _voc(judged: Judged, places: Sequence[int]) -> Grouped:
    return judged.mean(judged.voc(places), places)


def _voc_in_order(judged: Judged, name: str, index: int, curve: RewardCurve) -> float:
    when = judged.run.orders[name][index] if name == "rewound" else np.arange(len(curve))
    return order_correlation(curve, when)


def _falls(judged: Judged, index: int, curve: RewardCurve) -> float:
    return falls_in_rewind(curve, judged.run.orders["rewound"][index])


def _over(judged: Judged, name: str, number: Callable[[int, RewardCurve], float]) -> Grouped:
    curves = judged.run.reordered.get(name, {})
    return judged.mean([number(index, curve) for index, curve in curves.items()], list(curves))


def _preferred(judged: Judged, index: int, curve: RewardCurve) -> float:
    original = episode_score(judged.run.curves[index], judged.kind)
    return preferred(original, episode_score(curve, judged.kind))


def success_rows(judged: Judged) -> Iterable[Row]:
    """AUROC and average precision; AUROC of the best behaviour against each other one."""
    section = "Success against failure, inside a task"
    both = len({judged.labels[index].success for index in judged.known}) == 2
    first = "final value" if judged.kind == "value" else "mean step reward"
    summaries: dict[Summary, tuple[str, str]] = {
        "final": ("", first),
        "mean": ("_mean", "mean value"),
        "max": ("_max", "largest value"),
    }
    for summary, (key, of) in summaries.items():
        auroc = Row(section, f"auroc{key}", f"AUROC of the {of}", "higher")
        precision = Row(section, f"average_precision{key}", f"average precision of the {of}", "higher")
        if not both or (key and judged.kind != "value"):
            why = NOT_FOR_STEPS if both else NO_SUCCESS
            yield from (auroc.without(why), precision.without(why))
            continue
        scores, tasks = judged.scores(judged.known, summary), judged.tasks(judged.known)
        truth = [bool(judged.labels[index].success) for index in judged.known]
        yield auroc.of(grouped_pairs(scores, [float(each) for each in truth], tasks, judged.options.seed))
        yield precision.of(grouped_precision(scores, truth, tasks, judged.options.seed))
    yield from _against(judged, section)


def _against(judged: Judged, section: str) -> Iterable[Row]:
    """AUROC of the best behaviour against each other one."""
    names = judged.behaviours()
    for other in names[1:]:
        places = [i for i, labels in enumerate(judged.labels) if labels.behaviour in {names[0], other}]
        grades = [float(judged.labels[index].behaviour == names[0]) for index in places]
        found = grouped_pairs(judged.scores(places), grades, judged.tasks(places), judged.options.seed)
        title = f"AUROC, {words(names[0])} against {words(other)}"
        yield Row(section, f"auroc_{names[0]}_{other}", title, "higher").of(found)


def ranking_rows(judged: Judged) -> Iterable[Row]:
    """Order of the grades."""
    section = "Ranking of quality, inside a task"
    places = [i for i, labels in enumerate(judged.labels) if labels.quality is not None]
    rows = (
        Row(section, "pair_accuracy", "pairs in the right order, ties half", "higher"),
        Row(section, "kendall_tau", "Kendall's tau-a over pairs of different grade", "higher"),
    )
    if len({judged.labels[index].quality for index in places}) < 2:
        yield from (row.without(NO_QUALITY) for row in rows)
        return
    grades = [float(judged.labels[index].quality or 0) for index in places]
    found = grouped_pairs(judged.scores(places), grades, judged.tasks(places), judged.options.seed)
    yield rows[0].of(found)
    tau = {task: 2 * number - 1 for task, number in found.groups.items()}
    was = found.estimate
    value, low, high = (2 * number - 1 for number in (was.value, was.low, was.high))
    yield rows[1].of(Grouped(Estimate(value, low, high, was.count, was.undefined), tau))
