"""How to train, as opposed to what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """How to train, as opposed to what (that is the recipe).

    Attributes:
        seed: of weights, order of examples, views and masks.
        workers: processes that decode and augment, for each training process.
        accumulate: batches whose gradients are added up before a step; each holds batch_size / accumulate examples.
        every: use every so manieth frame as the start of an example.
        cache: folder for decoded frames, to decode each video once only; None to decode in every epoch.
        labels: classes of the videos, for methods that use them: `folders` (the folder that a video lies in, or a
            folder of images itself), or a CSV file with the columns `video` and `label`.
        label_fraction: part of each class's videos whose label is used.
        save_every: steps between two checkpoints.
        keep: checkpoints to keep.
        log_every: steps between two lines of the log.
        stop_after: stop with a checkpoint after so many steps, 0 for never; schedules are not changed by it.
        resume: go on from the newest checkpoint in the folder.
        adjust: with `resume`, take learning rates, their warm-up and the precision as they are given now.
        cpu: use the CPU even where there is a GPU.
    """

    seed: int = 0
    workers: int = 2
    accumulate: int = 1
    every: int = 1
    cache: Path | None = None
    labels: str = ""
    label_fraction: float = 1.0
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    stop_after: int = 0
    resume: bool = False
    adjust: bool = False
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("accumulate", "every", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
