"""What a labelled set comes to: one pass over its episodes, a few hundred bytes kept of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.stream import Status
from v2r_core.look.labelled_set import LabelledEpisode, LabelledSet
from v2r_core.rewards.quality import bumps, voc

CURVE_POINTS = 50
BINS = 20
GAP_FACTOR = 1.5
"""A stamp that comes later than so many usual steps leaves a gap."""
MIN_EPISODES = 5
MAX_SCORE = 3.5
"""Of the modified z-score above which Iglewicz and Hoaglin (1993) call a number an outlier."""
MAD_SCALE = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
NARROWEST = 0.02
"""Smallest deviation that counts, as a part of the range of the numbers, so that equal episodes are no outliers."""
MAX_INVALID = 0.5
VALID = (Status.OK, Status.WARMING_UP)

Score = Literal["progress", "value", "reward"]
Order = Literal["final progress", "order", "mean reward"]


@dataclass(frozen=True)
class EpisodeFacts:
    """One episode in numbers; NaN where there is none.

    Attributes:
        place: in the set.
        name: of the episode.
        goal: identifier; empty without one.
        own_end: whether it was compared with its own end.
        frames: rows.
        seconds: from the first stamp to the last.
        final_progress: the last one that is finite.
        max_progress: the highest one.
        mean_reward: over the frames that have one.
        order: Spearman's correlation of value and time, `quality.voc`.
        bumps: share of steps that go away from the goal.
        uncertainty: median; above 1 is unlike the demonstration.
        status: number of frames of each status, by `Status`.
        gaps: places where frames are missing, by the stamps.
        missing: frames that would have filled them.
        backwards: steps whose stamp does not advance.
        curves: of `CURVE_POINTS` points each, by name of the score; NaN where the episode has no number.
    """

    place: int
    name: str
    goal: str
    own_end: bool
    frames: int
    seconds: float
    final_progress: float
    max_progress: float
    mean_reward: float
    order: float
    bumps: float
    uncertainty: float
    status: tuple[int, ...]
    gaps: int
    missing: int
    backwards: int
    curves: dict[str, NDArray[np.float32]]

    @property
    def invalid(self) -> float:
        """Share of frames whose numbers cannot be trusted."""
        return 1 - sum(self.status[each] for each in VALID) / max(self.frames, 1)


@dataclass
class SetFacts:
    """A labelled set in numbers.

    Attributes:
        episodes: in the order of the set.
        failed: name of an episode that has no labels, or none that can be read, and why.
        score: what curves are compared by: progress where most episodes have it, otherwise value, otherwise reward.
        rank_by: what episodes are ordered by, see `choose_order`.
        progress: (BINS,) int64 frames by their progress, equal bins over [0, 1].
        outliers: place of an episode and the rules that it broke, in words.
    """

    episodes: list[EpisodeFacts] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    score: Score = "progress"
    rank_by: Order = "final progress"
    progress: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    outliers: dict[int, list[str]] = field(default_factory=dict)

    def ranked(self) -> list[EpisodeFacts]:
        """Episodes that can be ranked, the best one first."""
        found = [each for each in self.episodes if np.isfinite(rank_number(each, self.rank_by))]
        return sorted(found, key=lambda each: -rank_number(each, self.rank_by))


def collect(labelled: LabelledSet, on_progress: Callable[[int, int], None] | None = None) -> SetFacts:
    """Reads all labels once, no frame.

    An episode whose labels cannot be read counts as failed.

    Args:
        labelled: the set.
        on_progress: called with (episodes done, episodes in all).
    """
    facts = SetFacts(failed=dict(labelled.failed))
    for place, name in enumerate(labelled.names):
        try:
            episode = labelled[place]
        except (ValueError, OSError) as error:
            facts.failed[name] = str(error)
            continue
        facts.episodes.append(_episode_facts(place, episode))
        known = episode.labels.curve.progress
        facts.progress += np.histogram(known[np.isfinite(known)], BINS, (0, 1))[0]
        if on_progress is not None:
            on_progress(place + 1, len(labelled))
    facts.score = _choose_score(facts.episodes)
    facts.rank_by = choose_order(facts.episodes)
    facts.outliers = find_outliers(facts.episodes, facts.score)
    return facts


def _episode_facts(place: int, episode: LabelledEpisode) -> EpisodeFacts:
    labels, curve = episode.labels, episode.labels.curve
    known = curve.progress[np.isfinite(curve.progress)]
    rewards = curve.reward[np.isfinite(curve.reward)]
    uncertainty = curve.uncertainty[np.isfinite(curve.uncertainty)]
    gaps, missing, backwards = stamp_gaps(labels.stamps)
    nan = float("nan")
    return EpisodeFacts(
        place=place,
        name=episode.name,
        goal=episode.goal,
        own_end=episode.own_end,
        frames=len(labels),
        seconds=float(np.ptp(labels.stamps)) if len(labels) else 0.0,
        final_progress=float(known[-1]) if len(known) else nan,
        max_progress=float(known.max()) if len(known) else nan,
        mean_reward=float(rewards.mean()) if len(rewards) else nan,
        order=voc(curve.value, np.arange(len(labels), dtype=np.float64), exclude_goal=episode.own_end),
        bumps=bumps(curve.value),
        uncertainty=float(np.median(uncertainty)) if len(uncertainty) else nan,
        status=tuple(np.bincount(labels.status, minlength=len(Status)).tolist()),
        gaps=gaps,
        missing=missing,
        backwards=backwards,
        curves={name: resample(getattr(curve, name)) for name in ("progress", "value", "reward")},
    )


def stamp_gaps(stamps: NDArray[np.float64]) -> tuple[int, int, int]:
    """Gaps in the stamps, the frames that would have filled them, and steps that do not advance.

    Args:
        stamps: (T,) seconds. The usual step is the median of those that advance.
    """
    steps = np.diff(stamps)
    forward = steps[steps > 0]
    if not len(forward):
        return 0, 0, int((steps <= 0).sum())
    usual = float(np.median(forward))
    gaps = forward[forward > GAP_FACTOR * usual]
    return len(gaps), int((np.round(gaps / usual) - 1).sum()), int((steps <= 0).sum())


def resample(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """A curve at `CURVE_POINTS` equal parts of its length, (CURVE_POINTS,); numbers that are missing are bridged.

    NaN if fewer than two are finite.
    """
    usable = np.flatnonzero(np.isfinite(numbers))
    if len(usable) < 2:
        return np.full(CURVE_POINTS, np.nan, np.float32)
    wanted = np.linspace(0, len(numbers) - 1, CURVE_POINTS)
    return np.interp(wanted, usable, numbers[usable]).astype(np.float32)


def choose_order(episodes: list[EpisodeFacts]) -> Order:
    """What episodes can be ranked by.

    Final progress, unless most episodes have none or were compared with their own ends, where all of them arrive; then
    the order of their values in time; for step rewards, which have no value, the mean reward.
    """
    half = len(episodes) / 2
    if sum(np.isfinite(each.final_progress) and not each.own_end for each in episodes) > half:
        return "final progress"
    return "order" if sum(np.isfinite(each.order) for each in episodes) > half else "mean reward"


def rank_number(episode: EpisodeFacts, order: Order) -> float:
    """What an episode is ranked by; higher is better."""
    numbers = {"final progress": episode.final_progress, "order": episode.order, "mean reward": episode.mean_reward}
    return numbers[order]


def _choose_score(episodes: list[EpisodeFacts]) -> Score:
    names: tuple[Score, ...] = ("progress", "value", "reward")
    for name in names:
        if sum(np.isfinite(each.curves[name]).all() for each in episodes) > len(episodes) / 2:
            return name
    return "reward"


def find_outliers(episodes: list[EpisodeFacts], score: Score) -> dict[int, list[str]]:
    """Place of an episode and why it is an outlier, in words.

    Three rules: more than half of the frames cannot be trusted; the median uncertainty, or the root mean square
    distance of the curve from the median curve of the set, lies above the median of all episodes by a modified z-score
    of more than 3.5. The latter two want five episodes at least.
    """
    found: dict[int, list[str]] = {}
    for each in episodes:
        if each.invalid > MAX_INVALID:
            found.setdefault(each.place, []).append(f"{each.invalid:.0%} of its frames cannot be trusted")
    usable = [each for each in episodes if np.isfinite(each.curves[score]).all()]
    known = [each for each in episodes if np.isfinite(each.uncertainty)]
    if len(known) >= MIN_EPISODES:
        numbers = np.array([each.uncertainty for each in known])
        for each, high in zip(known, high_scores(numbers, 1.0), strict=True):
            if high:
                text = f"uncertainty {each.uncertainty:.2f}, the median episode has {np.median(numbers):.2f}"
                found.setdefault(each.place, []).append(text)
    if len(usable) >= MIN_EPISODES:
        curves = np.stack([each.curves[score] for each in usable]).astype(np.float64)
        distances = np.sqrt(np.mean((curves - np.median(curves, axis=0)) ** 2, axis=1))
        for each, high, number in zip(usable, high_scores(distances, float(np.ptp(curves))), distances, strict=True):
            if high:
                text = f"its {score} is {number:.2g} away from the median curve, usual is {np.median(distances):.2g}"
                found.setdefault(each.place, []).append(text)
    return found


def high_scores(numbers: NDArray[np.float64], scale: float) -> NDArray[np.bool_]:
    """Which of (N,) numbers lie far above their median, by the modified z-score.

    Args:
        numbers: finite.
        scale: range that they could have; deviations are taken as `NARROWEST` of it at least.
    """
    middle = np.median(numbers)
    deviation = max(MAD_SCALE * float(np.median(np.abs(numbers - middle))), NARROWEST * scale, 1e-12)
    result: NDArray[np.bool_] = (numbers - middle) / deviation > MAX_SCORE
    return result
