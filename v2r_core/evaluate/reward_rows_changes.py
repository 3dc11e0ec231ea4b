"""Lines about changed pictures, tricks, chance and cost; and all lines of a model together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from v2r_core.evaluate.metrics import (
    episode_score,
    frame_scores,
    gain,
    order_correlation,
    spread_over_seeds,
)
from v2r_core.evaluate.reward_plan import Plan, SuiteOptions, best_successes
from v2r_core.evaluate.reward_row import (
    NO_SUBSET,
    NO_SUCCESS,
    NOT_STOCHASTIC,
    Judged,
    Row,
)
from v2r_core.evaluate.reward_rows import order_rows, ranking_rows, reordered_rows, success_rows
from v2r_core.evaluate.reward_rows_truth import dense_rows, goal_rows, progress_rows, subgoal_rows
from v2r_core.evaluate.reward_stats import NAN, Estimate, Grouped, grouped_pairs, spearman
from v2r_core.evaluate.reward_suite import ModelRun
from v2r_core.rewards.reward import RewardCurve

NOT_MEASURED = "not measured for controls, nor where the system does not tell"


def make_rows(run: ModelRun, plan: Plan, options: SuiteOptions) -> list[Row]:
    """All lines of a model, in the order of the report. Every model has the same ones, with or without a number."""
    judged = Judged(run, plan, options)
    parts: tuple[Callable[[Judged], Iterable[Row]], ...] = (
        order_rows,
        reordered_rows,
        success_rows,
        ranking_rows,
        goal_rows,
        dense_rows,
        subgoal_rows,
        progress_rows,
        robustness_rows,
        trick_rows,
        chance_rows,
        cost_rows,
    )
    return [row for part in parts for row in part(judged)]


def robustness_rows(judged: Judged) -> Iterable[Row]:
    """Light, camera, blur, occlusion, frame rate: what is left of the curve, of VOC and of AUROC."""
    section = "Robustness (subset of episodes)"
    subset = list(judged.plan.subset)
    both = len({judged.labels[index].success for index in subset} - {None}) == 2
    changes = judged.run.changed
    for name in ("unchanged", *changes):
        key = name.replace(" ", "_")
        same = {index: judged.run.curves[index] for index in subset}
        curves = changes.get(name, same)
        agreement = Row(section, f"agreement_{key}", f"{name}: same curve (Spearman)", "higher")
        if name != "unchanged":
            numbers = [_agreement(judged, name, index, curve) for index, curve in curves.items()]
            yield agreement.of(judged.mean(numbers, list(curves)))
        good = [index for index in curves if index in best_successes(judged.plan)]
        voc = Row(section, f"voc_{key}", f"{name}: VOC of best successes", "higher")
        yield judged.for_values(voc, partial(_voc, judged, curves, good))
        auroc = Row(section, f"auroc_{key}", f"{name}: AUROC inside a task", "higher")
        yield auroc.of(_auroc(judged, curves)) if both else auroc.without(NO_SUCCESS if subset else NO_SUBSET)


def _voc(judged: Judged, curves: dict[int, RewardCurve], places: list[int]) -> Grouped:
    own = judged.run.own_end
    numbers = [order_correlation(curves[index], np.arange(len(curves[index])), index in own) for index in places]
    return judged.mean(numbers, places)


def _agreement(judged: Judged, name: str, index: int, curve: RewardCurve) -> float:
    original = frame_scores(judged.run.curves[index], judged.kind)
    return spearman(frame_scores(curve, judged.kind), original[judged.run.kept[name][index]])


def _auroc(judged: Judged, curves: dict[int, RewardCurve]) -> Grouped:
    places = [index for index in curves if judged.labels[index].success is not None]
    scores = [episode_score(curves[index], judged.kind) for index in places]
    grades = [float(judged.labels[index].success or 0) for index in places]
    return grouped_pairs(scores, grades, judged.tasks(places), judged.options.seed)


def trick_rows(judged: Judged) -> Iterable[Row]:
    """What a policy would earn by doing nothing, or by covering the camera."""
    section = "Still and covered camera (subset of episodes)"
    still = Row(section, "still_gain", "still camera: earned, as a part of what the episode earns", "lower")
    beats = Row(section, "still_beats", "still camera earns as much as a best success", "lower")
    covered = Row(section, "covered_beats", "covered camera earns as much as a best success", "lower")
    refused = Row(section, "covered_refused", "frames of a covered camera without a reward", "higher")
    good = [index for index in judged.plan.subset if index in best_successes(judged.plan)]
    if not good:
        yield from (row.without(NO_SUBSET) for row in (still, beats, covered, refused))
        return
    earned = {index: gain(judged.run.curves[index], judged.kind) for index in good}
    if judged.kind == "value":
        shares = [_share(gain(judged.run.still[index], judged.kind), earned[index]) for index in good]
        yield still.of(judged.mean(shares, good))
    else:
        yield still.without("not meaningful: step rewards have no zero to compare with")
    yield beats.of(judged.mean([_beats(judged, judged.run.still[i], earned[i]) for i in good], good))
    yield covered.of(judged.mean([_beats(judged, judged.run.covered[i], earned[i]) for i in good], good))
    missing = [float(np.mean(~np.isfinite(judged.run.covered[index].reward))) for index in good]
    yield refused.of(judged.mean(missing, good))


def _share(part: float, whole: float) -> float:
    return part / whole if np.isfinite(part) and whole > 0 else NAN


def _beats(judged: Judged, curve: RewardCurve, earned: float) -> float:
    """1, 0.5 for equal, 0; where every frame is refused nothing is earned, and that does not beat anything."""
    other = gain(curve, judged.kind)
    if not np.isfinite(earned):
        return NAN
    if not np.isfinite(other):
        return 0.0
    return 0.5 if other == earned else float(other > earned)


def chance_rows(judged: Judged) -> Iterable[Row]:
    """Sampling seeds, and frames that have no number."""
    section = "Chance and gaps"
    spread = Row(section, "seed_spread", "spread of a frame over sampling seeds, by spread over episodes", "lower")
    if not judged.run.model.stochastic:
        yield spread.without(NOT_STOCHASTIC)
    elif not judged.run.seeds:
        yield spread.without(NO_SUBSET)
    else:
        places = list(judged.run.seeds)
        scale = float(np.std([score for score in judged.scores(list(judged.run.curves)) if np.isfinite(score)] or [0]))
        numbers = [_share(spread_over_seeds(judged.run.seeds[index], judged.kind), scale) for index in places]
        yield spread.of(judged.mean(numbers, places))
    for key, title, places in (
        ("no_reward_best", "frames without a reward, best successes", best_successes(judged.plan)),
        ("no_reward_all", "frames without a reward, all episodes", list(judged.run.curves)),
    ):
        missing = [_gaps(judged.run.curves[index]) for index in places]
        yield Row(section, key, title, "lower").of(judged.mean(missing, places))


def _gaps(curve: RewardCurve) -> float:
    """Share of steps without a reward; the first frame ends no step, of a value at least."""
    rewards = curve.reward[1:]
    return float(np.mean(~np.isfinite(rewards))) if len(rewards) else NAN


def cost_rows(judged: Judged) -> Iterable[Row]:
    """Time and memory of one frame after the other."""
    section = "Cost on this machine, one thread"
    cost = judged.run.cost
    for key, title, unit in (
        ("p50_ms", "a frame, median", "ms"),
        ("p95_ms", "a frame, 95th percentile", "ms"),
        ("peak_mb", "largest memory of a process that scores", "MB"),
    ):
        row = Row(section, key, title, "lower", unit=unit)
        number = None if cost is None else getattr(cost, key)
        if cost is None or number is None:
            yield row.without(NOT_MEASURED)
        else:
            yield replace(row, estimate=Estimate(number, NAN, NAN, cost.frames, 0))
