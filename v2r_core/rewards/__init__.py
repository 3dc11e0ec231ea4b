"""Rewards: numpy on top of a callable network. Nothing in here imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.rewards.diffusion_reward import DiffusionReward
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.reward import Embed, Network
from v2r_core.rewards.staged_reward import StagedReward
from v2r_core.rewards.time_distance import TimeDistance
from v2r_core.rewards.viper import ViperReward

EmbeddingReward = GoalDistance | StagedReward | TimeDistance | ViperReward | DiffusionReward
"""Rewards on embeddings; next to `Reward` they have `observe(embedding)` and `observe_many(embeddings)`, so that
embeddings can be batched."""

_CLASSES: Mapping[str, type[EmbeddingReward]] = {
    "vip": GoalDistance,
    "uvd": StagedReward,
    "pixel": GoalDistance,
    "time": TimeDistance,
    "viper": ViperReward,
    "diffusion": DiffusionReward,
}
_GIVEN = ("embed", "networks", "tensors")
"""Arguments that are no parameters."""


def make_reward(
    name: str,
    embed: Embed | None,
    parameters: Mapping[str, Any] | None = None,
    *,
    networks: Mapping[str, Network] | None = None,
    tensors: Mapping[str, NDArray[Any]] | None = None,
) -> EmbeddingReward:
    """Makes a reward by its name, as it stands in a bundle or a parameter file.

    Args:
        name: vip (distance to the goal), uvd (staged), pixel (distance to the goal between thumbnails), time (temporal
            distance), viper, diffusion.
        embed: the encoder; pixel has its own and takes None as well.
        parameters: keyword parameters of the reward's class.
        networks: what a learned reward runs besides the encoder.
        tensors: numbers that it needs besides.

    Raises:
        ValueError: the name or a parameter is unknown, a value out of range, or the reward was not learned by this
            bundle.
    """
    if name not in _CLASSES:
        raise ValueError(f"reward {name!r} is unknown; one of {', '.join(_CLASSES)} expected")
    chosen = _CLASSES[name]
    names = inspect.signature(chosen).parameters
    allowed = [key for key in names if key not in _GIVEN]
    for key in parameters or {}:
        if key not in allowed:
            raise ValueError(f"reward {name!r} has no parameter {key!r}; it has {', '.join(allowed)}")
    if name == "pixel":
        embed = pixel_embedding
    if embed is None:
        raise ValueError(f"reward {name!r} needs an encoder; only pixel goes without")
    learned: dict[str, Any] = {"networks": networks or {}, "tensors": tensors or {}}
    if "networks" in names and not networks:
        raise ValueError(f"reward {name!r} has to be learned: this bundle has no networks for it; see v2r train")
    given = {key: value for key, value in learned.items() if key in names}
    try:
        made: EmbeddingReward = chosen(embed, **given, **(parameters or {}))
    except ValueError as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    return made
