"""Exponential moving averages of networks: key encoders, teachers, target encoders."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copy_for_ema(source: Network) -> Network:
    """A copy of a network whose parameters take no gradient."""
    target = copy.deepcopy(source)
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    return target


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * source, in place.

    Parameters only, matched by name: buffers such as the running statistics of a batch norm stay each network's own,
    as in all released codes.

    Args:
        target: the average.
        source: the network that is trained; may have parameters that `target` lacks (a predictor, say).
        momentum: in [0, 1].

    Raises:
        ValueError: momentum out of range, or a parameter of `target` that `source` lacks.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum is {momentum}, a value in [0, 1] expected")
    theirs = dict(source.named_parameters())
    averages: list[Tensor] = []
    values: list[Tensor] = []
    for name, parameter in target.named_parameters():
        if name not in theirs:
            raise ValueError(f"parameter {name} of the average is not in the network it averages; build both alike")
        averages.append(parameter)
        values.append(theirs[name].detach())
    torch._foreach_mul_(averages, momentum)
    torch._foreach_add_(averages, values, alpha=1.0 - momentum)
