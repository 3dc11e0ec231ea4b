"""The kit's rule for weights and inputs that it does not store (its README, section 0)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def fill_state(
    shapes: Mapping[str, Sequence[int]], seed: int, prefix: str = "", kernels_in_last: bool = False
) -> dict[str, Tensor]:
    """Values of a network's parameters and buffers, drawn from their names.

    Position tables that are analytic must not be in `shapes`, or be overwritten by the caller.

    Args:
        shapes: key of the state dict to shape.
        seed: the check's `fill_seed`.
        prefix: what a released checkpoint has in front of the keys; part of the name, not of the result's keys.
        kernels_in_last: `kernel` arrays have their outputs last (TensorFlow).

    Returns:
        key to float32 tensor; `num_batches_tracked` is int64 0.
    """
    return {key: _fill(prefix + key, tuple(shape), seed, kernels_in_last) for key, shape in shapes.items()}


def fill_input(
    seed: int, shape: Sequence[int], name: str = "input", kind: Literal["normal", "uniform"] = "normal"
) -> Tensor:
    """Input of a full-size check: standard normal, or uniform in [0, 1).

    Args:
        seed: the check's `fill_seed`.
        shape: as the check states it.
        name: what the draw is keyed by.
        kind: distribution.

    Returns:
        float32.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = rng.standard_normal(tuple(shape)) if kind == "normal" else rng.random(tuple(shape))
    return torch.from_numpy(np.asarray(drawn, dtype=np.float32))


def _fill(name: str, shape: tuple[int, ...], seed: int, kernels_in_last: bool) -> Tensor:
    last = name.replace("/", ".").rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if last in {"running_var", "moving_variance"}:
        value = 1 + 0.1 * np.abs(z)
    elif last in {"running_mean", "moving_mean"}:
        value = 0.1 * z
    elif len(shape) == 1:
        value = 1 + 0.1 * z if last in {"weight", "gamma"} else 0.05 * z
    elif last in {"weight", "kernel"}:
        value = z / math.sqrt(math.prod(shape[:-1] if kernels_in_last else shape[1:]))
    else:
        value = 0.1 * z
    return torch.from_numpy(np.asarray(value, dtype=np.float32))
