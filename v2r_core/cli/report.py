"""`v2r report`: one page about a labelled set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from v2r_core.look.labelled import open_labelled
from v2r_core.look.report import ReportOptions, write_report


@dataclass(frozen=True)
class Report:
    """Writes one offline HTML page about a labelled set.

    It shows how progress is distributed, the best and the worst episodes with film strips and curves, outliers, frames
    that are missing or cannot be trusted, and a table of all episodes that sorts and filters.
    """

    path: Annotated[str, tyro.conf.Positional]
    """What `v2r label` wrote: a rosbag2, a folder of labels, a LeRobotDataset, or the .parquet file of one video."""
    out: Path = Path("out/report.html")
    """The page to write."""
    shown: int = 4
    """So many of the best and of the worst episodes get pictures."""

    def run(self) -> int:
        """Reads, writes and says where.

        Raises:
            ValueError, OSError: nothing labelled is there, or the page cannot be written.
        """
        if self.shown < 0:
            raise ValueError(f"--shown {self.shown}: 0 or more expected")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with (
            open_labelled(self.path) as labelled,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        ):
            ticks = bar.add_task("reading", total=len(labelled))
            found = write_report(
                self.out, labelled, ReportOptions(self.shown), lambda done, _: bar.update(ticks, completed=done)
            )
        failed = f", without labels: {len(found.failed)}" if found.failed else ""
        print(f"episodes: {len(found.episodes)}, outliers: {len(found.outliers)}{failed}; written to {self.out}")
        return 0
