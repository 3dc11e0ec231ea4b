"""What a run says while it trains: a progress bar, `metrics.jsonl`, tensorboard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


class RunLog:
    """Writes for the main process; on the others it is silent.

    Args:
        run: the run's folder.
        total: optimizer steps of the whole training.
        start: steps done before; lines of `metrics.jsonl` behind it are dropped, they will come again.
        active: False on all but the main process.
    """

    def __init__(self, run: Path, total: int, start: int, active: bool) -> None:
        self._active = active
        self.console = Console(stderr=True, quiet=not active)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not active,
        )
        self._task = self._progress.add_task("training", total=total, completed=start, text="")
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        if active:
            _truncate(run / METRICS, start)
            self._file = (run / METRICS).open("a")
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start or None)

    def step(self, step: int, numbers: Mapping[str, float], text: str) -> None:
        """A line of the log.

        Args:
            step: optimizer steps done.
            numbers: by name; written with all digits.
            text: what stands beside the bar.
        """
        self._progress.update(self._task, completed=step, text=text)
        if self._file is None or self._board is None:
            return
        # JSON has no NaN: a number that is not there is null.
        line = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for key, value in numbers.items():
            self._board.add_scalar(key, value, step)

    def advance(self, step: int) -> None:
        """Moves the bar on."""
        self._progress.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def read_metrics(run: str | Path) -> list[dict[str, float | None]]:
    """The lines of a run's `metrics.jsonl`; a last line that was cut off is left away."""
    lines = []
    for line in (Path(run) / METRICS).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _truncate(file: Path, start: int) -> None:
    if not file.is_file():
        return
    kept = [line for line in read_metrics(file.parent) if (line["step"] or 0) <= start]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept))
