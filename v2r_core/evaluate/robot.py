"""The robot probe: can the positions of gripper and object be read linearly from frozen features?

One ridge regression over all tasks for the gripper: it is the same arm everywhere. One regression a task for the
object: what stands in the side-car as the object is a handle in one task and a puck in another, so a common regression
would mostly tell the tasks apart. Features and targets are standardised with training statistics, alpha is chosen by
cross-validation in which a video is never split, and R2 is measured on held-out videos with other placements. Where a
task has a second object, as hammer has a nail, it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from v2r_core.evaluate.features import (
    Embedder,
    Features,
    ProbeDataError,
    Recording,
    embed_recordings,
    list_recordings,
    read_truth,
)

AXES = ("x", "y", "z")
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 5, 13))
FOLDS = 5

SCALE_FLOOR = 0.1
"""Least divisor of a feature, in parts of the root mean square of all standard deviations. A unit that is silent in
training would otherwise ruin the prediction of the one frame in which it speaks."""

MIN_SPREAD = 1e-3
"""Metres. A coordinate that varies less than this between held-out frames is constant, and R2 is undefined."""


@dataclass(frozen=True)
class Positions:
    """Features of frames with what is to be read from them.

    Attributes:
        features: float32 (N, D).
        gripper: float64 (N, 3), metres.
        object: float64 (N, 3), metres.
        task: (N,) names.
        video: int64 (N,): which video each row is from.
    """

    features: NDArray[np.float32]
    gripper: NDArray[np.float64]
    object: NDArray[np.float64]
    task: NDArray[np.str_]
    video: NDArray[np.int64]


@dataclass(frozen=True)
class Regression:
    """One regression: R2 for each axis on held-out videos (NaN: undefined), and the chosen alpha."""

    r2: tuple[float, float, float]
    alpha: float


@dataclass(frozen=True)
class RobotReport:
    """Result of the robot probe.

    Attributes:
        gripper: the regression over all tasks.
        objects: a regression for each task.
        gripper_mean: mean R2 over the gripper's defined axes.
        object_mean: mean R2 over the defined axes of all tasks' objects.
        mean: mean of these two.
        undefined: number of coordinates without an R2, since they hardly move in the held-out videos.
        train_frames: rows that were fitted.
        heldout_frames: rows that were judged.
    """

    gripper: Regression
    objects: dict[str, Regression]
    gripper_mean: float
    object_mean: float
    mean: float
    undefined: int
    train_frames: int
    heldout_frames: int


def r2_scores(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficient of determination of each column.

    Args:
        truth: (N, K), metres.
        predicted: (N, K).

    Returns:
        float64 (K,); NaN where the truth's standard deviation is below `MIN_SPREAD`.
    """
    residual = ((truth - predicted) ** 2).sum(axis=0)
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    constant = truth.std(axis=0) < MIN_SPREAD
    return np.where(constant, np.nan, 1 - residual / np.where(constant, 1, total))


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression: `predict` takes features (M, D) to targets (M, K)."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    alpha: float

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Features (M, D) to predictions (M, K)."""
        predicted: NDArray[np.float64] = (features - self.centre) / self.scale @ self.weight + self.bias
        return predicted


def fit_ridge(features: NDArray[np.floating], targets: NDArray[np.float64], groups: NDArray[np.int64]) -> Ridge:
    """Ridge regression with alpha chosen by cross-validation over groups.

    The loss is the mean squared error of the standardised targets, so that no coordinate counts more than another. A
    feature that hardly varies is not blown up to the size of the others: see `SCALE_FLOOR`.

    Args:
        features: (N, D).
        targets: (N, K).
        groups: (N,), rows of one group stay together: the video.

    Raises:
        ProbeDataError: fewer than two groups, or features that are not finite.
    """
    count = len(np.unique(groups))
    if count < 2:
        raise ProbeDataError(f"{count} video to fit on, at least 2 needed to choose alpha; render more seeds")
    if not np.isfinite(features).all():
        raise ProbeDataError("features are not finite; the encoder is broken or its training diverged")
    x = features.astype(np.float64)
    spread = x.std(axis=0)
    floor = SCALE_FLOOR * float(np.sqrt((spread**2).mean()))
    centre, scale = x.mean(axis=0), np.maximum(spread, floor) if floor > 0 else np.ones_like(spread)
    x = (x - centre) / scale
    middle, width = targets.mean(axis=0), targets.std(axis=0)
    y = (targets - middle) / np.where(width > 0, width, 1)
    errors = np.zeros(len(ALPHAS))
    for fitted, judged in GroupKFold(min(FOLDS, count)).split(x, y, groups):
        inner, outer = x[fitted].mean(axis=0), y[fitted].mean(axis=0)
        for index, weight in enumerate(ridge_path(x[fitted] - inner, y[fitted] - outer, ALPHAS)):
            errors[index] += (((x[judged] - inner) @ weight + outer - y[judged]) ** 2).sum()
    alpha = ALPHAS[int(errors.argmin())]
    weight = next(ridge_path(x, y, (alpha,)))
    return Ridge(centre, scale, weight * width, middle, alpha)


def ridge_path(
    x: NDArray[np.float64], y: NDArray[np.float64], alphas: Sequence[float]
) -> Iterator[NDArray[np.float64]]:
    """Weights (D, K) that minimise |x w - y|^2 + alpha |w|^2 for each alpha, from one decomposition.

    Args:
        x: (N, D), columns with mean 0.
        y: (N, K), columns with mean 0.
        alphas: all above 0.
    """
    rows, columns = x.shape
    # The smaller of the two Gram matrices; both give the same weights.
    values, vectors = np.linalg.eigh(x @ x.T if rows < columns else x.T @ x)
    projected = vectors.T @ (y if rows < columns else x.T @ y)
    for alpha in alphas:
        solved = vectors @ (projected / (np.maximum(values, 0) + alpha)[:, None])
        yield x.T @ solved if rows < columns else solved


def robot_probe(train: Positions, heldout: Positions) -> RobotReport:
    """Fits on the one and judges on the other.

    Raises:
        ProbeDataError: a held-out task that training does not have, or too few videos.
    """
    if unknown := sorted(set(heldout.task) - set(train.task)):
        raise ProbeDataError(f"held-out tasks {', '.join(unknown)} do not occur in training; render them for both")
    gripper = _regression(train, heldout, train.gripper, heldout.gripper)
    objects = {}
    for task in sorted(set(heldout.task)):
        ours, theirs = _select(train, task), _select(heldout, task)
        objects[str(task)] = _regression(ours, theirs, ours.object, theirs.object)
    object_scores = np.array([regression.r2 for regression in objects.values()])
    means = [_defined_mean(np.array(gripper.r2)), _defined_mean(object_scores)]
    return RobotReport(
        gripper=gripper,
        objects=objects,
        gripper_mean=means[0],
        object_mean=means[1],
        mean=float(np.mean(means)),
        undefined=int(np.isnan(object_scores).sum() + np.isnan(gripper.r2).sum()),
        train_frames=len(train.features),
        heldout_frames=len(heldout.features),
    )


def read_positions(recordings: Sequence[Recording], features: Features) -> Positions:
    """Puts the side-cars' rows beside the features.

    Raises:
        ProbeDataError: a side-car is missing, damaged, or shorter than its video.
    """
    rows = []
    for index, recording in enumerate(recordings):
        truth = read_truth(recording.path)
        numbers = features.frame[features.video == index]
        if len(numbers) and numbers.max() >= len(truth.gripper):
            raise ProbeDataError(
                f"{recording.path}: more than {numbers.max()} frames, {len(truth.gripper)} rows beside it; render again"
            )
        rows.append((truth.gripper[numbers], truth.object[numbers], np.full(len(numbers), truth.task)))
    gripper, thing, task = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Positions(features.features, gripper, thing, task, features.video)


def probe_embedder(
    embedder: Embedder,
    data: str | Path,
    frames: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RobotReport:
    """The robot probe of one encoder on a data set.

    Args:
        embedder: what is probed.
        data: folder with `train` and `heldout` as tools/render_experts.py writes them.
        frames: frames of each video, evenly spaced.
        on_progress: gets the number of videos done, and of all.

    Raises:
        ProbeDataError, VideoError: the data cannot be used.
    """
    train, heldout = (list_recordings(data, split) for split in ("train", "heldout"))
    total = len(train) + len(heldout)
    fitted = embed_recordings(embedder, train, frames, on_progress=lambda done, _: on_progress(done, total))
    judged = embed_recordings(
        embedder, heldout, frames, on_progress=lambda done, _: on_progress(len(train) + done, total)
    )
    return robot_probe(read_positions(train, fitted), read_positions(heldout, judged))


def _regression(
    train: Positions, heldout: Positions, targets: NDArray[np.float64], truth: NDArray[np.float64]
) -> Regression:
    ridge = fit_ridge(train.features, targets, train.video)
    scores = r2_scores(truth, ridge.predict(heldout.features))
    return Regression((float(scores[0]), float(scores[1]), float(scores[2])), ridge.alpha)


def _select(positions: Positions, task: str) -> Positions:
    mine = positions.task == task
    return Positions(
        positions.features[mine],
        positions.gripper[mine],
        positions.object[mine],
        positions.task[mine],
        positions.video[mine],
    )


def _defined_mean(scores: NDArray[np.float64]) -> float:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")
