"""What stands behind the numbers, as the fields of v2r_msgs/RewardInfo."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from v2r_core.deploy.judging import subgoal_count
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.goal import adapt_goal

KIND_VALUE, KIND_STEP_REWARD = 0, 1
"""Constants of v2r_msgs/RewardInfo (a test holds them together)."""


def reward_info_fields(
    scorer: Scorer, goal_source: str, scale: float, clip: float, cameras: Sequence[str] = ("",)
) -> dict[str, Any]:
    """Fields of v2r_msgs/RewardInfo by name, all but the header.

    Args:
        scorer: what scores, with the goal in force.
        goal_source: where that goal came from.
        scale: factor on the raw reward.
        clip: its bound; 0 means none.
        cameras: their names.
    """
    manifest, session, goal = scorer.bundle.manifest, scorer.session, scorer.goal
    return {
        "model_name": manifest.name,
        "model_sha256": scorer.bundle.sha256,
        "encoder": manifest.encoder.name,
        "embedding_dim": session.embedding_dim,
        "image_size": session.size,
        "mean": list(scorer.bundle.preprocess.mean),
        "std": list(scorer.bundle.preprocess.std),
        "precision": session.precision,
        "provider": session.provider,
        "device": "cpu" if session.provider == "CPUExecutionProvider" else "cuda:0",
        "kind": KIND_VALUE if scorer.reward.kind == "value" else KIND_STEP_REWARD,
        "reward_name": scorer.reward_name,
        "reward_scale": scale,
        "reward_clip": clip or float("inf"),
        "discount": 1.0,
        "uncertainty_threshold": _threshold(scorer),
        "goal_id": goal.name if goal else "",
        "goal_source": goal_source if goal else "",
        "subgoal_count": subgoal_count(scorer),
        "component_names": list(cameras) if len(cameras) > 1 else [],
        "software_version": version("v2r_ros"),
    }


def _threshold(scorer: Scorer) -> float:
    """The threshold that is in force: the goal's own holds for the rule over cameras that it was calibrated with."""
    if scorer.goal is None:
        return float("nan")
    return adapt_goal(scorer.goal, scorer.camera_rule, subgoals=True).uncertainty_threshold
