"""How each paper trains its linear classifier on frozen features, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How one paper trains its linear classifier.

    Attributes:
        optimizer: `sgd` with momentum 0.9, `nesterov` for Nesterov's form of it, `lars` as MAE's code has it.
        rates: learning rate; several are tried and the best is taken, see `linear_probe`.
        per_256: True if the rate is meant for a batch of 256 and grows in proportion with the batch.
        epochs: passes over the training frames.
        batch_size: rows a step, at most; all of them where there are fewer.
        schedule: `step` for a tenth at each milestone, `cosine` for half a cosine to 0.
        milestones: parts of the training at which `step` drops the rate.
        warmup: part of the training in which the rate rises from 0.
        unit: how often the schedule is evaluated.
        zero_init: weights start at 0; otherwise normally distributed with standard deviation 0.01. The bias is 0.
        batch_norm: features pass a batch norm without affine parameters.
        features: which features the paper takes; whoever computes them has to see to it.
    """

    optimizer: Literal["sgd", "nesterov", "lars"]
    rates: tuple[float, ...]
    per_256: bool
    epochs: int
    batch_size: int
    schedule: Literal["step", "cosine"] = "cosine"
    milestones: tuple[float, ...] = ()
    warmup: float = 0.0
    unit: Literal["epoch", "step"] = "epoch"
    zero_init: bool = False
    batch_norm: bool = False
    features: str = "pooled output"


PROTOCOLS = {
    "moco": Protocol("sgd", (30.0,), False, 100, 256, schedule="step", milestones=(0.6, 0.8)),
    "mocov3": Protocol("sgd", (3.0,), True, 90, 1024, features="class token; for a ResNet the rate is 0.1"),
    "simclr": Protocol("nesterov", (0.1,), True, 90, 4096, unit="step", zero_init=True),
    "dino": Protocol(
        "sgd", (0.001,), True, 100, 1024, features="ViT-S: class tokens of the last 4 blocks; ViT-B: last, with mean"
    ),
    "dinov2": Protocol(
        "sgd",
        (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
        True,
        10,
        1024,
        unit="step",
        features="class token of the last 1 or 4 blocks, with or without the patches' mean",
    ),
    "mae": Protocol("lars", (0.1,), True, 90, 16384, warmup=10 / 90, unit="step", batch_norm=True),
    "ijepa": Protocol(
        "lars",
        (0.01, 0.05, 0.001),
        False,
        50,
        16384,
        schedule="step",
        milestones=(0.3, 0.6, 0.9),
        batch_norm=True,
        features="mean of the patch tokens of the last block, or of the last 4 side by side",
    ),
}
"""The papers' protocols, weight decay 0 in all. simclrv2 trains like simclr. I-JEPA's is not released; this follows the
paper's appendix. All but moco's need far more rows than a few videos have: their batches are large, so that little
data means few steps, and LARS moves in small ones. The learning rate follows the batch that is really used, where the
paper scales it. `ProbeResult.steps` tells; below `FEW_STEPS` a poor accuracy says nothing about the features."""

FEW_STEPS = 500
