"""`v2r view`: what is labelled, in Rerun."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from v2r_core.label.complete import complete
from v2r_core.look.labelled import open_labelled
from v2r_core.look.labelled_set import LabelledSet
from v2r_core.look.rerun_log import LogCounts, LogOptions, blueprint, log_episodes, need_rerun, new_recording

DEFAULT_FILE = Path("out/view.rrd")


@dataclass(frozen=True)
class View:
    """Opens what is labelled in Rerun, or writes it to an .rrd file: images, value, reward, progress, status.

    Episodes come one behind the other, on a timeline of their stamps and on one of frame numbers.
    """

    path: Annotated[str, tyro.conf.Positional]
    """What `v2r label` wrote: a rosbag2, a folder of labels, a LeRobotDataset, or the .parquet file of one video."""
    episodes: str | None = None
    """Which ones, from 0, e.g. `0,3,5-8`; by default the first ten."""
    save: Path | None = None
    """Write an .rrd file and open nothing; without a display this is out/view.rrd by default."""
    web: bool = False
    """Serve it for a browser on this machine, until Ctrl-C."""
    overlay: bool = False
    """Also show the images with progress, subgoal and status drawn on them."""
    max_side: int = 480
    """Images are shrunk to so many pixels on their longer side."""

    def run(self) -> int:
        """Logs and says where.

        Raises:
            ValueError, OSError, RuntimeError: nothing labelled is there, no such episode, or Rerun is missing.
        """
        if self.max_side < 16:
            raise ValueError(f"--max-side {self.max_side}: 16 or more expected")
        if self.save is not None and self.web:
            raise ValueError("--save and --web: give one of the two")
        rr = need_rerun()
        with open_labelled(self.path) as labelled:
            places = choose_episodes(self.episodes, len(labelled))
            recording = new_recording(labelled)
            plan = blueprint(self.overlay)
            file = self.save
            if file is None and not self.web and not has_display():
                file = DEFAULT_FILE
                print("no display: writing a file; open it with `rerun FILE`, or serve it with --web", file=sys.stderr)
            if file is not None:
                with complete(file) as half:
                    recording.save(half, default_blueprint=plan)
                    counts = self._log(recording, labelled, places)
                    recording.disconnect()  # writes the end of the file
                print(f"{_words(counts, len(labelled))}; written to {file} ({file.stat().st_size / 1e6:.1f} MB)")
            elif self.web:
                address = recording.serve_grpc(default_blueprint=plan)
                rr.serve_web_viewer(connect_to=address, open_browser=has_display())
                print(f"{_words(self._log(recording, labelled, places), len(labelled))}; Ctrl-C ends it")
                _wait()
            else:
                recording.spawn(default_blueprint=plan)
                print(_words(self._log(recording, labelled, places), len(labelled)))
        return 0

    def _log(self, recording: Any, labelled: LabelledSet, places: list[int]) -> LogCounts:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            ticks = bar.add_task("frames", total=None)
            counts = log_episodes(
                recording,
                labelled,
                places,
                LogOptions(self.max_side, self.overlay),
                lambda done, of: bar.update(ticks, completed=done, total=of),
            )
        recording.flush()
        for problem in counts.problems or ():
            print(f"v2r view: {problem}", file=sys.stderr)
        return counts


def choose_episodes(words: str | None, count: int) -> list[int]:
    """Places of episodes out of words like "0,3,5-8"; None: the first ten.

    Raises:
        ValueError: not such words, or no such episode.
    """
    if words is None:
        return list(range(min(count, 10)))
    places: dict[int, None] = {}
    for part in words.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--episodes {words}: numbers from 0 expected, as in 0,3,5-8")
        if not int(first) <= int(last or first) < count:
            raise ValueError(f"--episodes {words}: there are {count}, 0 to {count - 1}")
        places |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(places)


def has_display() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _words(counts: LogCounts, total: int) -> str:
    return f"{counts.episodes} of {total} episodes, {counts.frames} frames, {counts.pictures} with a picture"


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
