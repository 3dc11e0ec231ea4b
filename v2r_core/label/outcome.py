"""What became of a video that was to be labelled, in this process or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from v2r_core.label.table import Labels
from v2r_core.label.workers import Done


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        number: its place among the tasks, from 0.
        labels: None if it failed.
        error: why it failed; empty if it did not.
        seconds: wall time that it took, the start of its worker not included.
        cpu_seconds: processor time of its worker meanwhile, all threads together; 0 if the worker died.
    """

    number: int
    labels: Labels | None
    error: str
    seconds: float
    cpu_seconds: float = 0.0

    @classmethod
    def of(cls, done: Done[Labels]) -> Outcome:
        """The same in other words."""
        return cls(done.number, done.result, done.error, done.seconds, done.cpu_seconds)
