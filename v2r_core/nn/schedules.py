"""Schedules of learning rate, weight decay, momentum and temperature, each as its authors evaluate it.

They look alike and are not: whether a warm-up includes its end, whether the cosine reaches its final value, and whether
the first step counts as 0 or 1 differ from one released code to the next. Everything is computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def warmup_cosine_table(
    base: float, final: float, total: int, warmup: int = 0, start: float = 0.0
) -> NDArray[np.float64]:
    """DINO's and DINOv2's schedule, a value for each iteration.

    The warm-up is evenly spaced and includes both ends, so `base` comes twice; the cosine behind it never reaches
    `final`.

    Args:
        base: value at the end of the warm-up.
        final: value that the cosine falls (or rises) to.
        total: number of iterations.
        warmup: iterations of warm-up, at most `total`.
        start: first value of the warm-up.

    Returns:
        float64, shape (total,).

    Raises:
        ValueError: `warmup` is larger than `total`.
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up takes {warmup} of {total} iterations; train longer or warm up less")
    rising = np.linspace(start, base, warmup)
    count = total - warmup
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(count) / max(count, 1)))
    return np.concatenate([rising, falling])


def table_value(table: NDArray[np.float64], step: int, final: float) -> float:
    """Value of a table at a step; `final` at its end and beyond (DINOv2)."""
    return float(table[step]) if step < len(table) else final


def teacher_temperature(epoch: int, warmup_value: float, value: float, warmup_epochs: int) -> float:
    """DINO's teacher temperature: evenly spaced over the warm-up epochs, both ends included, then constant."""
    if epoch >= warmup_epochs:
        return value
    return float(np.linspace(warmup_value, value, warmup_epochs)[epoch])


def half_cosine(epoch: float, base: float, epochs: int) -> float:
    """MoCo v2's learning rate, evaluated once an epoch: half a cosine, no warm-up."""
    return base * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def step_decay(epoch: float, base: float, milestones: Sequence[int]) -> float:
    """MoCo v1's learning rate: a tenth of it from each milestone on."""
    value = base
    for milestone in milestones:
        value *= 0.1 if epoch >= milestone else 1.0
    return value


def warmup_half_cosine(epoch: float, base: float, minimum: float, warmup_epochs: float, epochs: float) -> float:
    """MoCo v3's (minimum 0) and MAE's learning rate at a fractional epoch: linear from 0, then half a cosine."""
    if epoch < warmup_epochs:
        return base * epoch / warmup_epochs
    part = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (base - minimum) * 0.5 * (1.0 + math.cos(math.pi * part))


def cosine_momentum(epoch: float, base: float, epochs: float) -> float:
    """MoCo v3's momentum at a fractional epoch: from `base` to 1."""
    return 1.0 - 0.5 * (1.0 + math.cos(math.pi * epoch / epochs)) * (1.0 - base)


def simclr_steps(examples: int, batch: int, epochs: int, warmup_epochs: float) -> tuple[int, int]:
    """SimCLR's number of steps and of warm-up steps.

    Args:
        examples: images in the training set.
        batch: global batch size.
        epochs: epochs to train.
        warmup_epochs: may be a fraction.

    Returns:
        total, one more than whole batches fit in; warm-up.
    """
    return examples * epochs // batch + 1, round(warmup_epochs * examples // batch)


def simclr_lr(step: int, peak: float, total: int, warmup: int) -> float:
    """SimCLR's learning rate: linear from 0 to `peak`, then half a cosine to 0 at `total`, where it stays."""
    if step < warmup:
        return peak * step / warmup
    part = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1.0 + math.cos(math.pi * part))


def jepa_lr(step: int, start: float, ref: float, final: float, warmup: int, total: int) -> float:
    """I-JEPA's and V-JEPA's learning rate. Their counter is raised before it is used: the first step is 1.

    Args:
        step: from 1.
        start: value at step 0, never used.
        ref: value at the end of the warm-up.
        final: value at `total`, and the least value.
        warmup: steps of warm-up.
        total: steps of the whole schedule, which may be longer than the training (`ipe_scale`).
    """
    if step < warmup:
        return start + step / max(warmup, 1) * (ref - start)
    part = (step - warmup) / max(total - warmup, 1)
    return max(final, final + (ref - final) * 0.5 * (1.0 + math.cos(math.pi * part)))


def jepa_weight_decay(step: int, base: float, final: float, total: int) -> float:
    """I-JEPA's and V-JEPA's weight decay; the first step is 1. It never passes `final`."""
    value = final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * step / total))
    return max(final, value) if final <= base else min(final, value)


def linear_momentum(index: int, start: float, end: float, total: float) -> float:
    """I-JEPA's and V-JEPA's EMA momentum; the first index is 0."""
    return start + index * (end - start) / total


def warmup_stable_decay(
    step: int, start: float, ref: float, final: float, warmup: int, anneal: int, total: int
) -> float:
    """V-JEPA 2's learning rate: linear rise, constant, linear fall in the last `anneal` steps; the first step is 1."""
    if step < warmup:
        return start + step / max(warmup, 1) * (ref - start)
    if step < total - anneal or anneal == 0:
        return ref
    return ref + (step - (total - anneal)) / anneal * (final - ref)


def linear_decay(step: int, ref: float, final: float, total: int) -> float:
    """V-JEPA 2's cool-down: a straight line from `ref` to `final`; the first step is 1."""
    return ref + step / total * (final - ref)
