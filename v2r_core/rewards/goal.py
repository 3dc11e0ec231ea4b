"""What a reward compares frames with: goal and subgoal embeddings, and the calibration from the demonstration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from v2r_core.rewards.calibration import (
    CameraRule,
    arrival_spread,
    distance,
    times_of_progress,
    uncertainty_threshold,
)

GOAL_FORMAT = 1
MAX_DEMONSTRATION_FRAMES = 128
"""Longer demonstrations are thinned evenly: time to embed them, memory, and the search at camera rate."""
MAX_NAME = 100


@dataclass(frozen=True)
class Goal:
    """A goal, ready for use by a reward. Float arrays are float32 and finite; anything else is a ValueError.

    Attributes:
        name: identifier that the node publishes as `goal_id`; 1 to 100 printable characters.
        milestones: (M, C, D) embeddings of the subgoals in order, the final goal last; C cameras. M = 1: no subgoals.
        milestone_frames: (M,) int64 frame numbers in the demonstration; empty without a demonstration.
        demonstration: (T, C, D) embeddings of the demonstration, thinned to 128 at most; T = 0 without one.
        demonstration_progress: (T,) float32 in [0, 1], non-decreasing: how far the task had come at its frames.
        spreads: (M,) float32: distance up to which a milestone counts as reached; 0 without a demonstration.
        uncertainty_threshold: distance to the nearest demonstration embedding above which a frame is out of
            distribution; NaN without a demonstration.
        demonstration_frames: (T,) int64 ascending frame numbers of `demonstration`, before it was thinned.
        cameras: how the distances of several cameras became one in the calibration.
    """

    name: str
    milestones: NDArray[np.float32]
    milestone_frames: NDArray[np.int64]
    demonstration: NDArray[np.float32]
    demonstration_progress: NDArray[np.float32]
    spreads: NDArray[np.float32]
    uncertainty_threshold: float
    demonstration_frames: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    cameras: CameraRule = "mean"

    def __post_init__(self) -> None:
        _check_goal(self)

    @property
    def has_demonstration(self) -> bool:
        """True if there is something to calibrate progress on."""
        return len(self.demonstration) > 0

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, by rename, so that a half-written one is never found."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        tensors["uncertainty_threshold"] = np.array([self.uncertainty_threshold], np.float64)
        head = {"format": GOAL_FORMAT, "name": self.name, "cameras": self.cameras}
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        # Not its save_file, whose files nobody but their owner may read: the node may run as another user.
        partial.write_bytes(save(tensors, metadata={"v2r_goal": json.dumps(head)}))
        partial.replace(target)


_ARRAYS = {
    "milestones": (np.float32, 3),
    "milestone_frames": (np.int64, 1),
    "demonstration": (np.float32, 3),
    "demonstration_frames": (np.int64, 1),
    "demonstration_progress": (np.float32, 1),
    "spreads": (np.float32, 1),
}


def load_goal(path: str | Path) -> Goal:
    """Reads what `Goal.save` wrote.

    Raises:
        ValueError: not such a file, of another format, or with content that `Goal` refuses; the message names it.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such goal file; make one from a demonstration or goal images")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        head = json.loads(metadata.get("v2r_goal", ""))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a goal file ({error}); make the goal again") from error
    wanted = {*_ARRAYS, "uncertainty_threshold"}
    if not isinstance(head, dict) or head.get("format") != GOAL_FORMAT or set(head) != {"format", "name", "cameras"}:
        raise ValueError(f"{path}: goal header {head!r}, format {GOAL_FORMAT} expected; make the goal again")
    if set(tensors) != wanted:
        raise ValueError(f"{path}: tensors {sorted(tensors)}, {sorted(wanted)} expected; make the goal again")
    threshold = tensors.pop("uncertainty_threshold")
    if threshold.shape != (1,):
        raise ValueError(f"{path}: uncertainty_threshold has shape {threshold.shape}, (1,) expected")
    try:
        return Goal(name=head["name"], cameras=head["cameras"], uncertainty_threshold=float(threshold[0]), **tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def goal_from_images(embeddings: NDArray[np.float32], name: str, keep_all: bool = False) -> Goal:
    """A goal out of one or several goal images: the mean of their embeddings, as in VIP's trajectory optimisation.

    Without a demonstration nothing can be calibrated: progress and uncertainty will be NaN.

    Args:
        embeddings: float32 (N, D), or (N, C, D) with C cameras.
        name: identifier.
        keep_all: keep every image as a milestone, for rewards that take several goals in no order.

    Raises:
        ValueError: no image, another shape, or a number that is not finite.
    """
    images = _with_cameras(embeddings)
    return Goal(
        name=name,
        milestones=images if keep_all else images.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32),
        milestone_frames=np.zeros(0, np.int64),
        demonstration=np.zeros((0, *images.shape[1:]), np.float32),
        demonstration_progress=np.zeros(0, np.float32),
        spreads=np.zeros(len(images) if keep_all else 1, np.float32),
        uncertainty_threshold=float("nan"),
    )


def goal_from_demonstration(
    embeddings: NDArray[np.float32],
    name: str,
    milestone_frames: Sequence[int] | NDArray[np.int64] | None = None,
    cameras: CameraRule = "mean",
    frame_numbers: NDArray[np.int64] | None = None,
) -> Goal:
    """A goal out of a demonstration, with progress and uncertainty calibrated on it.

    Progress is the fraction of the demonstration's time until it arrives; see `calibration.times_of_progress` and
    `calibration.NearestFrames`, and `calibration.uncertainty_threshold`.

    Args:
        embeddings: float32 (T, D), or (T, C, D) with C cameras; T >= 1.
        name: identifier.
        milestone_frames: ascending frame numbers of the subgoals, e.g. of `uvd.decompose`; the last must be T - 1.
            None: only the last frame.
        cameras: how the distances of several cameras become one.
        frame_numbers: (T,) ascending: which frames these are, if some were left out (`thinned_frames`); then there
            can be no subgoals.

    Raises:
        ValueError: shapes, numbers that are not finite, or milestones out of order.
    """
    frames = _with_cameras(embeddings)
    count = len(frames)
    chosen = np.array([count - 1] if milestone_frames is None else milestone_frames, np.int64)
    if chosen.ndim != 1 or len(chosen) == 0 or chosen[0] < 0 or chosen[-1] != count - 1 or (np.diff(chosen) <= 0).any():
        raise ValueError(
            f"milestone_frames = {chosen.tolist()}: ascending frame numbers expected, the last one {count - 1}, "
            f"the end of the demonstration of {count} frames"
        )
    numbers = np.arange(count, dtype=np.int64) if frame_numbers is None else np.asarray(frame_numbers, np.int64)
    if milestone_frames is not None and frame_numbers is not None:
        raise ValueError("milestone_frames and frame_numbers: subgoals need all frames; give one of the two")
    if not _ascending(numbers, count):
        raise ValueError(f"frame_numbers: {count} ascending numbers expected, one for each embedding")
    return _calibrate(
        name, frames, numbers=numbers, milestones=frames[chosen], milestone_frames=numbers[chosen], cameras=cameras
    )


def thinned_frames(count: int) -> NDArray[np.int64]:
    """The frame numbers that are kept of a demonstration of `count` frames: 128 at most, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_DEMONSTRATION_FRAMES)).round().astype(np.int64))


def goal_name(text: str) -> str:
    """A name that a goal may have, out of a file name: printable, and its last 100 characters at most."""
    return "".join(c if c.isprintable() else "_" for c in text)[-MAX_NAME:] or "goal"


def adapt_goal(goal: Goal, cameras: CameraRule, subgoals: bool) -> Goal:
    """The same goal calibrated for another use: without its subgoals, or for another rule over cameras.

    Returns `goal` itself where nothing has to change. The stored demonstration is what it is calibrated on.
    """
    drop = not subgoals and len(goal.milestones) > 1
    if not drop and (goal.cameras == cameras or not goal.has_demonstration):
        return goal
    milestones, frames = goal.milestones, goal.milestone_frames
    if drop:
        milestones, frames = milestones[-1:], frames[-1:]
    if not goal.has_demonstration:
        empty = np.zeros(0, np.int64)
        spreads = goal.spreads[-len(milestones) :]
        return Goal(
            goal.name, milestones, empty, goal.demonstration, goal.demonstration_progress, spreads, float("nan")
        )
    numbers = goal.demonstration_frames
    adapted = _calibrate(
        goal.name, goal.demonstration, numbers=numbers, milestones=milestones, milestone_frames=frames, cameras=cameras
    )
    # Subgoals have no say in the threshold, and further executions may have widened it.
    same = goal.cameras == cameras
    return replace(adapted, uncertainty_threshold=goal.uncertainty_threshold) if same else adapted


def camera_goal(goal: Goal, camera: int) -> Goal:
    """The same goal as one camera alone has it, calibrated on what that camera saw of the demonstration.

    Args:
        goal: of C cameras, with a demonstration.
        camera: which of them, in [0, C).

    Raises:
        ValueError: it has no demonstration, so there is nothing to calibrate on.
    """
    if not goal.has_demonstration:
        raise ValueError(f"goal {goal.name!r} has no demonstration; make it of a video instead of images")
    return _calibrate(
        goal.name,
        goal.demonstration[:, [camera]],
        numbers=goal.demonstration_frames,
        milestones=goal.milestones[:, [camera]],
        milestone_frames=goal.milestone_frames,
        cameras="mean",
    )


def _calibrate(
    name: str,
    demonstration: NDArray[np.float32],
    *,
    numbers: NDArray[np.int64],
    milestones: NDArray[np.float32],
    milestone_frames: NDArray[np.int64],
    cameras: CameraRule,
) -> Goal:
    """Calibrates on demonstration (T, C, D), whose frames have the given numbers; a number may be left out."""
    spreads = []
    previous = -1
    for milestone, end in zip(milestones, milestone_frames.tolist(), strict=True):
        inside = (numbers > previous) & (numbers < end)
        spreads.append(arrival_spread(distance(demonstration[inside], milestone, cameras)))
        previous = end
    progress = times_of_progress(numbers, distance(demonstration, milestones[-1], cameras), spreads[-1])
    kept = thinned_frames(len(numbers))
    return Goal(
        name=name,
        milestones=milestones,
        milestone_frames=milestone_frames,
        demonstration=demonstration[kept],
        demonstration_progress=progress[kept],
        spreads=np.array(spreads, np.float32),
        uncertainty_threshold=uncertainty_threshold(demonstration[kept], numbers[kept], cameras),
        demonstration_frames=numbers[kept],
        cameras=cameras,
    )


def _with_cameras(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    array = np.asarray(embeddings, np.float32)
    if array.ndim == 2:
        array = array[:, None]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"embeddings have shape {np.shape(embeddings)}, (N, D) or (N, C, D) expected, none of them 0")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))[0])
        raise ValueError(f"the embedding of frame {bad} is not finite; look at that frame and at the encoder")
    return array


def _check_goal(goal: Goal) -> None:
    name = goal.name
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"goal name {name!r}: 1 to {MAX_NAME} printable characters expected")
    for key, (dtype, axes) in _ARRAYS.items():
        array = getattr(goal, key)
        if array.dtype != dtype or array.ndim != axes:
            raise ValueError(
                f"goal {name!r}: {key} is {array.dtype} with {array.ndim} axes, {np.dtype(dtype)} with {axes} expected"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"goal {name!r}: {key} has numbers that are not finite; make the goal again")
    count, length = len(goal.milestones), len(goal.demonstration)
    progress, spreads = goal.demonstration_progress, goal.spreads
    in_range = bool(((progress >= 0) & (progress <= 1)).all())
    rules = [
        ("milestones: one at least, no axis of length 0", 0 not in goal.milestones.shape),
        ("demonstration: the C and D of the milestones", goal.demonstration.shape[1:] == goal.milestones.shape[1:]),
        ("demonstration_frames: ascending, one a frame", _ascending(goal.demonstration_frames, length)),
        ("milestone_frames: ascending, one a milestone", _ascending(goal.milestone_frames, count if length else 0)),
        ("demonstration_progress: one a frame", len(progress) == length),
        ("demonstration_progress: non-decreasing within [0, 1]", in_range and bool((np.diff(progress) >= 0).all())),
        ("spreads: one a milestone, 0 or more", len(spreads) == count and bool((spreads >= 0).all())),
        ("uncertainty_threshold: finite and above 0, or NaN", not goal.uncertainty_threshold <= 0),
        ("uncertainty_threshold: finite and above 0, or NaN", goal.uncertainty_threshold != np.inf),
        ("cameras: mean or min", goal.cameras in ("mean", "min")),
    ]
    for rule, kept in rules:
        if not kept:
            raise ValueError(f"goal {name!r} breaks the rule {rule!r}; make the goal again")


def _ascending(numbers: NDArray[np.int64], count: int) -> bool:
    return len(numbers) == count and bool((np.diff(numbers) > 0).all())
