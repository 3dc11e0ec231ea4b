from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from v2r_core.rewards import make_reward
from v2r_core.rewards.executions import MARGIN, widened
from v2r_core.rewards.goal import adapt_goal, goal_from_demonstration, goal_from_images, load_goal


def line(offset: float, count: int = 30) -> np.ndarray:
    """A way from 0 to 1 along the first axis, beside the line by `offset`: float32 (T, 1, 2)."""
    x = np.linspace(0, 1, count, dtype=np.float32)
    return np.stack([x, np.full_like(x, offset)], axis=1)[:, None]


def test_frames_of_other_executions_belong_to_the_task() -> None:
    goal = goal_from_demonstration(line(0.0), "goal")
    wide = widened(goal, [line(0.3), line(0.5)])
    assert goal.uncertainty_threshold < 0.3
    np.testing.assert_allclose(wide.uncertainty_threshold, MARGIN * 0.5, rtol=1e-4)
    np.testing.assert_array_equal(wide.demonstration_progress, goal.demonstration_progress)
    for threshold, expected in ((goal, True), (wide, False)):
        reward = make_reward("vip", lambda frames: frames)
        reward.reset(threshold)
        assert (reward.observe(line(0.5)[10]).uncertainty > 1) == expected


def test_a_goal_is_never_made_narrower() -> None:
    goal = goal_from_demonstration(line(0.0), "goal")
    assert widened(goal, [line(0.0)]).uncertainty_threshold == goal.uncertainty_threshold
    assert widened(goal, []).uncertainty_threshold == goal.uncertainty_threshold


def test_the_threshold_stays_when_subgoals_are_dropped_and_when_saved(tmp_path: Path) -> None:
    wide = widened(goal_from_demonstration(line(0.0), "goal", [10, 29]), [line(0.5)], margin=2.0)
    wide.save(tmp_path / "goal.safetensors")
    loaded = load_goal(tmp_path / "goal.safetensors")
    np.testing.assert_allclose(loaded.uncertainty_threshold, 1.0, rtol=1e-4)
    assert len(loaded.milestones) == 2
    assert adapt_goal(loaded, "mean", subgoals=False).uncertainty_threshold == loaded.uncertainty_threshold


def test_refusals() -> None:
    goal = goal_from_demonstration(line(0.0), "goal")
    with pytest.raises(ValueError, match=r"margin is 0\.5"):
        widened(goal, [], margin=0.5)
    with pytest.raises(ValueError, match="no demonstration of at least 8 frames"):
        widened(goal_from_images(line(0.0)[:1], "image"), [line(0.1)])
    with pytest.raises(ValueError, match=r"execution 1 has embeddings of shape \(1, 3\)"):
        widened(goal, [line(0.1), np.zeros((4, 1, 3), np.float32)])
