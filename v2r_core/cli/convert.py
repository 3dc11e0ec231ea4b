"""`v2r convert`: one kind of recording as another: rosbag2, LeRobotDataset v3, folder of videos."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from v2r_core.convert.parts import CameraNames, Wishes
from v2r_core.convert.run import Converted, ConvertTask, convert

NOTED = 5
"""Lines of one kind that the table shows; --json has all of them."""


@dataclass(frozen=True)
class Convert:
    """Converts between rosbag2, LeRobotDataset v3 and folders of videos; rewards come along. The source stays as it is.

    A folder of bags or videos becomes one dataset, with at least one episode each. OUT has its name only when it is
    complete. A run that was interrupted goes on behind its last finished episode when it is started again; until then
    that lies in OUT.partial. A recording that cannot be read is named and left out, and the exit code is 1.

    From a bag, frames are taken at a constant rate: at each point of time the image of the first camera that is nearest
    (within half a step), and of every other topic the newest message at or before it. Where one is too old, the episode
    ends, and a new one begins when all are there again.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A rosbag2, a LeRobotDataset v3, a video, or a folder of bags or of videos, labelled by `v2r label` or not."""
    out: Annotated[Path, tyro.conf.Positional]
    """What it becomes; a new folder."""
    to: Literal["lerobot", "videos", "bag"]
    """Kind of that. `videos` takes pictures and labels only: an mp4 an episode and camera."""
    fps: int | None = None
    """Frames a second. By default those of the first recording: of a bag the median rate of its first camera."""
    image: tuple[str, ...] = ()
    """Bag: TOPIC[=NAME] of the cameras, which become observation.images.NAME, the first one with the clock; by default
    all. Dataset, or videos with --cameras: cameras to take. Videos: what to call the camera."""
    cameras: CameraNames | None = None
    """Videos of several cameras: `folders`: CAMERA/EPISODE.mp4, as --to videos writes them; `files`:
    EPISODE/CAMERA.mp4. The first camera has the clock, and an episode has frames as long as all cameras last. By
    default each video is an episode of its own."""
    state: tuple[str, ...] = ()
    """Bag: TOPIC[=NAME] with joint states, arrays, twists or other messages of numbers. Those without a NAME become
    observation.state, one behind the other; those with one observation.NAME. Where several publishers have different
    joints on one topic of joint states, all joints are taken, each with its newest value."""
    action: tuple[str, ...] = ()
    """Bag: TOPIC of the action, in the same way. Of a JointTrajectory the last point is taken."""
    feature: tuple[str, ...] = ()
    """Bag: NAME=TOPIC:field.path for other numbers, e.g. observation.velocity=/joint_states:velocity."""
    reward_topic: str | None = None
    """Bag: topic of v2r_msgs/Reward; by default the only one."""
    max_age: float | None = None
    """Bag: seconds that the newest message of a topic may be old. By default four steps of the topic itself, but at
    least 0.2 s; a topic with a single message holds all the time."""
    clock: Literal["header", "recorded"] = "header"
    """Bag: when a message was: its stamp, where it has one, or when it was recorded. Take `recorded` where the clocks
    of the machines differ."""
    task: str | None = None
    """What was to be done, in words, for all episodes."""
    task_topic: str | None = None
    """Bag: topic of std_msgs/String with the task; the newest one before an episode holds for it."""
    episode_topic: str | None = None
    """Bag: an episode ends with each message on this topic; by default the one of v2r_msgs/Episode, if there is one."""
    gap: float | None = None
    """Bag: an episode also ends where no image comes for so many seconds."""
    raw: bool = False
    """To a bag: sensor_msgs/Image instead of JPEG."""
    strict: bool = False
    """Stop at the first recording that cannot be converted."""
    force: bool = False
    """Replace OUT if it is there."""
    json: bool = False
    """Print the summary as JSON instead of a table."""

    def run(self) -> int:
        """Converts and reports.

        Returns:
            0; 1 if a recording was left out; 130 if it was interrupted.

        Raises:
            ValueError, OSError: an option, the source or OUT cannot be used; the message says which and why.
        """
        try:
            return self._convert()
        except KeyboardInterrupt:
            print("v2r convert: interrupted; the same command goes on from here", file=sys.stderr)
            return 130

    def _convert(self) -> int:
        for name, value in (("fps", self.fps), ("gap", self.gap), ("max-age", self.max_age)):
            if value is not None and not value > 0:
                raise ValueError(f"--{name} {value}: a number above 0 expected")
        wishes = Wishes(
            fps=self.fps,
            images=self.image,
            cameras=self.cameras,
            states=self.state,
            actions=self.action,
            features=self.feature,
            reward_topic=self.reward_topic,
            max_age=self.max_age,
            clock=self.clock,
            task=self.task,
            task_topic=self.task_topic,
            episode_topic=self.episode_topic,
            gap=self.gap,
        )
        task = ConvertTask(self.source, self.out, self.to, wishes, self.raw, self.force, self.strict)
        # Standard error, so that a pipe gets the summary and nothing else.
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            ticks = bar.add_task("frames", total=None)
            done = convert(task, lambda frames, _: bar.update(ticks, completed=frames))
        summary = self._summarise(done)
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            # Tasks and names of files may have brackets in them, which are no markup.
            Console(markup=False).print(_report(summary), f"written to {self.out}")
        return 1 if done.failed else 0

    def _summarise(self, done: Converted) -> dict[str, Any]:
        layout = done.layout
        assert layout is not None
        return {
            "source": str(self.source),
            "kind": done.kind,
            "out": str(self.out),
            "to": self.to,
            "recordings": done.recordings,
            "failed": done.failed,
            "episodes": done.episodes,
            "frames": done.frames,
            "resumed": done.resumed,
            "fps": layout.fps,
            "video_seconds": done.frames / layout.fps,
            "cameras": {name: f"{width}x{height}" for name, (height, width) in layout.cameras.items()},
            "numbers": {} if self.to == "videos" else {name: each.length for name, each in layout.vectors.items()},
            "rewards": None if layout.head is None else {"camera": layout.head.camera, "model": layout.head.model},
            "tasks": dict(done.tasks),
            "cuts": done.left_out.cuts,
            "frames_left_out": {reason: count for reason, count in done.left_out.frames.items() if count},
            "topics_left_out": done.left_out.topics,
            "seconds": done.seconds,
            "frames_per_s": done.frames / done.seconds if done.seconds else math.inf,
        }


def _report(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    cuts, rewards, tasks = summary["cuts"], summary["rewards"], summary["tasks"]
    rows = {
        "source": f"{summary['source']} ({summary['kind']}, recordings: {summary['recordings']})",
        "episodes": str(summary["episodes"]) + (f", {cuts} cuts where a topic was silent" if cuts else ""),
        "frames": f"{summary['frames']}, {summary['video_seconds']:.1f} s at {summary['fps']} a second",
        "taken over": f"{summary['resumed']} episodes of a run that was interrupted"
        if summary["resumed"]
        else "nothing",
        "cameras": ", ".join(f"{name} {size}" for name, size in summary["cameras"].items()),
        "numbers": ", ".join(f"{name} ({length})" for name, length in summary["numbers"].items()) or "none",
        "rewards": "none" if rewards is None else f"of {rewards['model']}, for {rewards['camera']}",
        "tasks": ", ".join(f"{text!r} ({count})" for text, count in tasks.items() if text) or "none; --task says it",
        "speed": f"{summary['frames_per_s']:.0f} frames/s",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    notes = {
        "failed": [f"{name}: {reason}" for name, reason in summary["failed"].items()],
        "left out": [f"{count} frames: {reason}" for reason, count in summary["frames_left_out"].items()],
        "not taken": [f"{name}: {reason}" for name, reason in summary["topics_left_out"].items()],
    }
    for title, lines in notes.items():
        more = [f"and {len(lines) - NOTED} more"] if len(lines) > NOTED else []
        for place, line in enumerate([*lines[:NOTED], *more]):
            table.add_row("" if place else title, line)
    return table
