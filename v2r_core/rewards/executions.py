"""What further executions of a task say about a goal: how unlike its demonstration a frame may be and still belong.

One demonstration can only guess how far others lie from it, see `calibration.uncertainty_threshold`. With objects in
other places they lie farther, and a robot that stops at every frame out of distribution would never finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.calibration import distance
from v2r_core.rewards.goal import Goal

MARGIN = 1.1
"""The next execution may lie this much farther off than the farthest of those that are known."""


def widened(goal: Goal, executions: Sequence[NDArray[np.float32]], margin: float = MARGIN) -> Goal:
    """The goal with a threshold that takes all frames of the executions for the task.

    Args:
        goal: with a demonstration.
        executions: embeddings of further executions, float32 (T, C, D) each.
        margin: at least 1.

    Returns:
        The goal; its threshold is `margin` times the largest distance of any of these frames to the nearest one of the
        demonstration, or what it was, if that is more.

    Raises:
        ValueError: the goal has no threshold to widen, an execution has other cameras or another length of embedding,
            or the margin is below 1.
    """
    if not margin >= 1:
        raise ValueError(f"margin is {margin}, at least 1 expected")
    if not np.isfinite(goal.uncertainty_threshold):
        raise ValueError(f"goal {goal.name!r} has no demonstration of at least 8 frames to compare executions with")
    farthest = 0.0
    for number, execution in enumerate(executions):
        if execution.shape[1:] != goal.demonstration.shape[1:]:
            raise ValueError(
                f"execution {number} has embeddings of shape {execution.shape[1:]}, the goal's are "
                f"{goal.demonstration.shape[1:]}; embed both with the same bundle"
            )
        for frame in execution:
            farthest = max(farthest, float(distance(goal.demonstration, frame, goal.cameras).min()))
    return replace(goal, uncertainty_threshold=max(goal.uncertainty_threshold, margin * farthest))
