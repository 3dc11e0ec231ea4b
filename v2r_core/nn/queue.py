"""A queue of keys: the negatives of MoCo, and of SimCLRv2's memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_queue(dim: int, size: int) -> Tensor:
    """A full queue to begin with: `size` random unit vectors as columns, (dim, size)."""
    return functional.normalize(torch.randn(dim, size), dim=0)


def check_queue(size: int, batch_size: int) -> None:
    """Batches must fill a queue without a rest.

    Raises:
        ValueError: they do not.
    """
    if size < batch_size or size % batch_size:
        low = max(size // batch_size, 1) * batch_size
        raise ValueError(
            f"a queue of {size} keys is no multiple of the batch size {batch_size}; use a queue of {low} or "
            f"{low + batch_size}, or another batch size"
        )


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Overwrites the oldest keys, in place.

    Args:
        queue: (D, K).
        pointer: int64 (1,), the column of the oldest key; moves on by N, modulo K.
        keys: (N, D), of all processes; N divides K.
    """
    start = int(pointer)
    queue[:, start : start + len(keys)] = keys.T
    pointer[0] = (start + len(keys)) % queue.shape[1]
