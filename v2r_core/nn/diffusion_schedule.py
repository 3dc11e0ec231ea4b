"""How fast tokens lose their value in discrete diffusion with a mask (VQ-Diffusion, Gu et al. 2022), in numpy.

A token keeps its value with probability a, takes one of the K codes at random with K b, and becomes the mask with c;
small letters for one step, "cumulative" for all steps up to one. `nn.discrete_diffusion` and `rewards.denoising` share
these numbers, so this file imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEEP = (0.99999, 0.000009)
"""Cumulative probability to keep the value, of the first and the last step."""
MASK = (0.000009, 0.99999)
"""Cumulative probability of the mask, of the first and the last step."""


@dataclass(frozen=True)
class Probabilities:
    """Float64 probabilities of T steps.

    Attributes:
        keep: a, (T,).
        switch: b, for each of the K codes, (T,).
        mask: c, (T,).
        cumulative_keep: (T + 1,). The entry at the end, which the index -1 finds too, is "no noise at all".
        cumulative_switch: (T + 1,).
        cumulative_mask: (T + 1,).
    """

    keep: NDArray[np.float64]
    switch: NDArray[np.float64]
    mask: NDArray[np.float64]
    cumulative_keep: NDArray[np.float64]
    cumulative_switch: NDArray[np.float64]
    cumulative_mask: NDArray[np.float64]


@dataclass(frozen=True)
class LogProbabilities:
    """Float32 logarithms of `Probabilities`, taken in float64, under the names of the released buffers."""

    log_at: NDArray[np.float32]
    log_bt: NDArray[np.float32]
    log_ct: NDArray[np.float32]
    log_1_min_ct: NDArray[np.float32]
    log_cumprod_at: NDArray[np.float32]
    log_cumprod_bt: NDArray[np.float32]
    log_cumprod_ct: NDArray[np.float32]
    log_1_min_cumprod_ct: NDArray[np.float32]


def probabilities(steps: int, codes: int) -> Probabilities:
    """The linear schedule that the released code calls alpha1.

    Args:
        steps: T, at least 2.
        codes: K, without the mask.

    Raises:
        ValueError: fewer than 2 steps, or no code.
    """
    if steps < 2 or codes < 1:
        raise ValueError(f"{steps} steps and {codes} codes; at least 2 and 1 expected")
    kept, masked = np.linspace(*KEEP, steps), np.linspace(*MASK, steps)
    keep = kept / np.concatenate([[1.0], kept[:-1]])
    mask = 1 - (1 - masked) / (1 - np.concatenate([[0.0], masked[:-1]]))
    kept, masked = np.append(kept, 1.0), np.append(masked, 0.0)
    return Probabilities(keep, (1 - keep - mask) / codes, mask, kept, (1 - kept - masked) / codes, masked)


def log_probabilities(steps: int, codes: int) -> LogProbabilities:
    """Logarithms of `probabilities`; see there."""
    table = probabilities(steps, codes)
    return LogProbabilities(
        log_at=_log(table.keep),
        log_bt=_log(table.switch),
        log_ct=_log(table.mask),
        log_1_min_ct=_log(1 - table.mask + 1e-40),
        log_cumprod_at=_log(table.cumulative_keep),
        log_cumprod_bt=_log(table.cumulative_switch),
        log_cumprod_ct=_log(table.cumulative_mask),
        log_1_min_cumprod_ct=_log(1 - table.cumulative_mask + 1e-40),
    )


def chain_steps(steps: int, skip: int) -> list[int]:
    """Steps at which a denoising chain calls its network, falling: the last, every (skip + 1)-th before it, and 0.

    Args:
        steps: T.
        skip: steps that are left out between two calls, 0 to T - 1.

    Raises:
        ValueError: skip out of range.
    """
    if not 0 <= skip < steps:
        raise ValueError(f"skip_step is {skip}, 0 to {steps - 1} expected")
    listed = list(range(steps - 1, -1, -1 - skip))
    return listed if listed[-1] == 0 else [*listed, 0]


def _log(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):  # "no noise" has probability 0
        return np.log(values).astype(np.float32)
