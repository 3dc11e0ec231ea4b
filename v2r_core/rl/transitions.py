"""Transitions of an episode: what a discount is, how n rewards add up, where one starts, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", int, NDArray[np.int64])


class Batch(NamedTuple):
    """B transitions of K stacked frames, oldest first.

    Attributes:
        observation: (B, K, *frame_shape), before the action.
        action: float32 (B, A).
        reward: float32 (B,), the discounted sum of n rewards.
        discount: float32 (B,), of the value after them.
        next_observation: like `observation`, n steps later.
    """

    observation: NDArray[Any]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    discount: NDArray[np.float32]
    next_observation: NDArray[Any]


def stored_discount(terminated: bool, compat: Literal["official", "paper"]) -> float:
    """Discount of a step as it goes into the replay; an episode that is merely cut off was not terminated.

    The released code reads `discount or 1.0`, which makes the 0 of a termination into 1: the value after the end of an
    episode counts as if it went on (`official`). That is harmless in tasks that never end by themselves. `paper`: 0.
    """
    return 0.0 if terminated and compat == "paper" else 1.0


def nstep_return(
    rewards: NDArray[np.float32], discounts: NDArray[np.float32], gamma: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum of n discounted rewards, and the discount of what follows (equation 1), accumulated in float32.

    Args:
        rewards: (B, n).
        discounts: (B, n), of the same steps.
        gamma: discount of a step.

    Returns:
        (B,) each.
    """
    total = np.zeros(len(rewards), dtype=np.float32)
    left = np.ones(len(rewards), dtype=np.float32)
    for reward, discount in zip(rewards.T, discounts.T, strict=True):
        total += left * reward
        left *= discount * np.float32(gamma)
    return total, left


def draw_start(steps: Number, nstep: int, integers: Callable[[int, Number], Number]) -> Number:
    """Where in an episode a transition starts: a row from 1 to steps - nstep + 1, uniform.

    Args:
        steps: of the episode, or of each of several.
        nstep: n.
        integers: draws from [low, high), like `Generator.integers`.
    """
    return integers(0, steps - nstep + 1) + 1
