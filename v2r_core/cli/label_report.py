"""What the kinds of `v2r label` say while they work and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

HOURS = 1000
AGAIN = "they are tried again when the same command is started again"


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, so that a pipe gets the summary and nothing else; called with (done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        ticks = bar.add_task("labelling", total=None)
        yield lambda done, of: bar.update(ticks, completed=done, total=of)


def cost(frames: int, video_seconds: float, wall: float, busy: float, cpu: float) -> dict[str, float | None]:
    """What labelling takes, measured.

    Args:
        frames: that were labelled.
        video_seconds: how long they play; 0 if that is not known.
        wall: seconds of the whole run, the start of model and workers included.
        busy: seconds that workers were at work, all together.
        cpu: seconds of processor time meanwhile, all threads of all workers together; 0 if not known.

    Returns:
        Frames per second, per second of a worker, per second of a core; frame rate of the videos; hours of cores and of
        workers for 1,000 hours of such video. None where it cannot be said.
    """

    def ratio(number: float, of: float) -> float | None:
        return number / of if number > 0 and of > 0 else None

    return {
        "frames_per_s": ratio(frames, wall),
        "frames_per_s_per_worker": ratio(frames, busy),
        "frames_per_core_s": ratio(frames, cpu),
        "fps": ratio(frames, video_seconds),
        "core_hours_per_1000_h": ratio(HOURS * cpu, video_seconds),
        "worker_hours_per_1000_h": ratio(HOURS * busy, video_seconds),
    }


def cost_rows(cost: Mapping[str, float | None], what: str) -> dict[str, str]:
    """The same in words; `what` is the plural of a frame."""
    if cost["frames_per_s"] is None:
        return {"speed": "nothing was labelled"}
    parts = [
        ("frames_per_s", f"{what}/s"),
        ("frames_per_s_per_worker", f"{what}/s per worker"),
        ("frames_per_core_s", f"{what} per second of a core"),
    ]
    rows = {"speed": ", ".join(f"{number:.0f} {unit}" for key, unit in parts if (number := cost[key]) is not None)}
    if (workers := cost["worker_hours_per_1000_h"]) is not None:
        cores = cost["core_hours_per_1000_h"]
        hours = f"{_hours(cores)} core-hours, " if cores is not None else ""
        rows[f"{HOURS:,} h of video"] = f"{hours}{_hours(workers)} worker-hours, at {cost['fps']:.3g} frames/s as here"
    return rows


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def counted(statuses: Mapping[str, int]) -> str:
    """Numbers of statuses in words."""
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in statuses.items()) or "none"


def rows_table(rows: Mapping[str, str]) -> Table:
    """Names and what is to be said of them."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def failed_table(failed: Mapping[str, str], what: str, consequence: str) -> Table:
    """All that failed, and why."""
    table = Table(title=f"{len(failed)} failed; {consequence}")
    table.add_column(what, style="bold", overflow="fold")
    table.add_column("why", overflow="fold")
    for name, reason in failed.items():
        table.add_row(name, reason)
    return table


def plain_console() -> Console:
    """A console that shows the names of files as they are: they may look like markup, as `clip[a].mp4` does."""
    return Console(markup=False, emoji=False)


def print_report(
    rows: Mapping[str, str], failed: Mapping[str, str], what: str, out: Any, consequence: str = AGAIN
) -> None:
    """Prints the summary for a reader."""
    console = plain_console()
    console.print(rows_table(rows), f"written to {out}")
    if failed:
        console.print(failed_table(failed, what, consequence))
