"""Rewards: numpy on top of a callable network. Nothing in here imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.reward import Embed
from v2r_core.rewards.staged_reward import StagedReward

EmbeddingReward = GoalDistance | StagedReward
"""Rewards on embeddings; next to `Reward` they have `observe(embedding)`, so that embeddings can be batched."""

_CLASSES: Mapping[str, type[GoalDistance] | type[StagedReward]] = {
    "vip": GoalDistance,
    "uvd": StagedReward,
    "pixel": GoalDistance,
}


def make_reward(name: str, embed: Embed | None, parameters: Mapping[str, Any] | None = None) -> EmbeddingReward:
    """Makes a reward by its name, as it stands in a bundle or a parameter file.

    Args:
        name: vip (distance to the goal), uvd (staged), pixel (distance to the goal between thumbnails).
        embed: the encoder; pixel has its own and takes None as well.
        parameters: keyword parameters of `GoalDistance` (vip, pixel) or `StagedReward` (uvd).

    Raises:
        ValueError: the name or a parameter is unknown, or a value out of range.
    """
    if name not in _CLASSES:
        raise ValueError(f"reward {name!r} is unknown; one of {', '.join(_CLASSES)} expected")
    chosen = _CLASSES[name]
    allowed = [key for key in inspect.signature(chosen).parameters if key != "embed"]
    for key in parameters or {}:
        if key not in allowed:
            raise ValueError(f"reward {name!r} has no parameter {key!r}; it has {', '.join(allowed)}")
    if name == "pixel":
        embed = pixel_embedding
    if embed is None:
        raise ValueError(f"reward {name!r} needs an encoder; only pixel goes without")
    try:
        return chosen(embed, **(parameters or {}))
    except ValueError as error:
        raise ValueError(f"reward {name!r}: {error}") from error
