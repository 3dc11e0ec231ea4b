"""How far the task has come as each of several cameras sees it; the reward itself makes one number of them all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.goal import Goal, adapt_goal, camera_goal
from v2r_core.rewards.goal_distance import nearest_frames
from v2r_core.rewards.staged_reward import stage_parts


class CameraProgress:
    """Finds the frames of a demonstration that are most like what one camera sees, for each camera by itself.

    So a camera that sees nothing of the task, or something else, can be told from those that do. Without subgoals the
    progress is what a reward with this camera alone would have. With subgoals all cameras pursue the same one.
    """

    def __init__(self, goal: Goal, subgoals: bool) -> None:
        """Calibrates each camera on the demonstration.

        Args:
            goal: of C cameras; without a demonstration progress is NaN throughout.
            subgoals: the reward pursues its subgoals one after the other; else they are left out.
        """
        cameras = goal.milestones.shape[1] if goal.has_demonstration else 0
        fitting = adapt_goal(goal, goal.cameras, subgoals)
        goals = [camera_goal(fitting, camera) for camera in range(cameras)]
        self._count = goal.milestones.shape[1]
        self._nearest = [nearest_frames(each, "mean") for each in goals]
        self._parts = stage_parts(fitting)

    def of(self, embedding: NDArray[np.float32], subgoal_index: int = 0) -> NDArray[np.float32]:
        """Progress of each camera.

        Args:
            embedding: float32 (C, D), one row a camera.
            subgoal_index: the subgoal that is being pursued, from 0.

        Returns:
            float32 (C,) in [0, 1]; NaN for a camera whose image is out of distribution or gave no finite embedding.
        """
        found = np.full(self._count, np.nan, np.float32)
        for camera, nearest in enumerate(self._nearest):
            row = embedding[[camera]]
            if not np.isfinite(row).all():
                continue
            distances = nearest.distances(row)
            if not nearest.uncertainty(distances) > 1:
                found[camera] = nearest.progress(distances, self._parts[subgoal_index])
        return found
