"""Collectives that a method's mathematics needs, and that do nothing on a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as differentiable


def world() -> int:
    """Number of processes; 1 where there is no process group."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Number of this process, from 0; 0 where there is no process group."""
    return dist.get_rank() if _grouped() else 0


@torch.no_grad()
def gather(rows: Tensor) -> Tensor:
    """All processes' rows, joined in the order of ranks, with no gradient.

    Args:
        rows: shape (N, ...), the same on every process.

    Returns:
        shape (world * N, ...), detached.
    """
    if world() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_with_grad(rows: Tensor) -> Tensor:
    """All processes' rows, joined in the order of ranks.

    The gradient that arrives at `rows` is that of the **sum** of all processes' losses.

    Args:
        rows: shape (N, ...), the same on every process.

    Returns:
        shape (world * N, ...).
    """
    if world() == 1:
        return rows
    return torch.cat(differentiable.all_gather(rows.contiguous()))


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over processes, as a new tensor of the same shape, with no gradient."""
    total = values.detach().clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over processes, as a new tensor of the same shape, with no gradient."""
    return sum_over_ranks(values) / world()


@torch.no_grad()
def broadcast(values: Tensor, source: int = 0) -> Tensor:
    """The values of process `source`, as a new tensor, on every process."""
    copy = values.detach().clone()
    if world() > 1:
        dist.broadcast(copy, source)
    return copy


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
