"""`v2r label`: rewards for data that is already recorded."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.label.rosbag import BagTask, LabelledBag, label_bag


@dataclass(frozen=True)
class Label:
    """Writes a copy of a rosbag2 with a reward behind every image; the original is not touched.

    The copy has its name only when it is complete. A run that was interrupted goes on when it is started again.
    """

    bag: Annotated[Path, tyro.conf.Positional]
    """A rosbag2: its folder, or one of its files."""
    out: Path
    """The labelled bag, a new folder."""
    model: Path = DEFAULT_BUNDLE
    """Folder of the bundle; `v2r models` lists those that are installed."""
    image_topic: str | None = None
    """Topic with the images (sensor_msgs/Image or CompressedImage); by default the only one."""
    goal: str | None = None
    """What to compare with: `last` (each episode's own end; progress is then calibrated on this episode itself), an
    image, a demonstration (any video), a saved goal (.safetensors), or a table (.csv) with the columns `episode` (from
    0, or * for all others) and `goal`. By default the goal of the model, or `last` if it has none."""
    reward: Literal["vip", "uvd", "pixel"] | None = None
    """See `v2r score`. By default the reward of the model."""
    episode_topic: str | None = None
    """An episode ends with each message on this topic, whatever its type; by default the one of v2r_msgs/Episode, if
    there is one."""
    gap: float | None = None
    """An episode also ends where no image comes for so many seconds. By default the episode goes on, as with a live
    node, which only leaves out the reward of a step of more than 1 s."""
    namespace: str = "/reward_node"
    """Rewards go to NAMESPACE/reward, what stands behind them to NAMESPACE/info."""
    threads: int = 1
    """CPU threads of the encoder; 0 takes all cores. Decoding and writing have threads of their own."""
    force: bool = False
    """Replace `out` if it is there."""
    json: bool = False
    """Print the summary as JSON instead of a table."""

    def run(self) -> int:
        """Labels and reports.

        Raises:
            ValueError, OSError: bag, goal or model cannot be used; the message says which and why.
        """
        if self.gap is not None and not self.gap > 0:
            raise ValueError(f"--gap {self.gap}: seconds above 0 expected")
        task = BagTask(
            self.bag,
            self.out,
            self.image_topic,
            self.goal,
            self.episode_topic,
            self.gap,
            self.namespace,
            self.force,
        )
        start = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Standard error, so that a pipe gets the summary and nothing else.
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            ticks = bar.add_task("labelling", total=None)
            done = label_bag(
                task,
                load_bundle(self.model),
                self.reward,
                self.threads,
                lambda images, of: bar.update(ticks, completed=images, total=of),
            )
        summary = self._summarise(done, time.perf_counter() - start)
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            Console().print(_report(summary), f"written to {self.out}")
        return 0

    def _summarise(self, done: LabelledBag, seconds: float) -> dict[str, Any]:
        counts, scorer = done.counts, done.scorer
        replayed, needed = done.resumed
        return {
            "bag": str(self.bag),
            "out": str(self.out),
            "image_topic": done.topic,
            "messages": done.messages,
            "images": counts.images,
            "labels": counts.labels,
            "episodes": counts.episodes,
            "reward": scorer.reward_name,
            "status": {status.name.lower(): number for status, number in sorted(counts.statuses.items())},
            "problems": {status.name.lower(): text for status, text in sorted(counts.problems.items())},
            "image_sizes": [f"{width}x{height}" for height, width in counts.sizes],
            "resumed": replayed / max(needed, 1),
            "images_per_s": counts.images / seconds,
            "model": {
                "name": scorer.bundle.manifest.name,
                "sha256": scorer.bundle.sha256,
                "precision": scorer.session.precision,
                "provider": scorer.session.provider,
            },
        }


def _report(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    sizes = summary["image_sizes"]
    left_out = summary["images"] - summary["labels"]
    rows = {
        "bag": f"{summary['bag']}, {summary['messages']} messages",
        "images": f"{summary['images']} on {summary['image_topic']}, {', '.join(sizes)}"
        + ("; the size changes" if len(sizes) > 1 else ""),
        "left out": f"{left_out}, which came before their turn" if left_out else "none",
        "episodes": str(summary["episodes"]),
        "labels": ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in summary["status"].items()),
        "taken over": f"{summary['resumed']:.0%} from a run that was interrupted" if summary["resumed"] else "nothing",
        "speed": f"{summary['images_per_s']:.0f} images/s ({summary['model']['provider']})",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    for name, text in summary["problems"].items():
        table.add_row(name.replace("_", " "), text)
    return table
