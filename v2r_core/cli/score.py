"""`v2r score`: the rewards of a video as a table, a picture and a summary."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.goals import GOAL_SUFFIX, is_image, read_goal_image
from v2r_core.deploy.own_end import Counted, score_towards_own_end
from v2r_core.deploy.stream import Scorer, Status, VideoScore
from v2r_core.label.overlay_video import subgoal_pictures, write_overlay
from v2r_core.plot import draw_curve
from v2r_core.rewards.goal import goal_name, load_goal
from v2r_core.rewards.quality import bumps, voc
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video

LAST = "last"


@dataclass(frozen=True)
class Score:
    """Scores a video and writes curve.csv, curve.png and summary.json."""

    video: Annotated[str, tyro.conf.Positional]
    """A video file, a folder of images, or a rosbag2 (`bag:/topic`)."""
    goal: str | None = None
    """What to compare with: `last` (this video's own end; progress is then calibrated on this video itself), an image,
    a demonstration (any video; progress is calibrated on it), or a saved goal (.safetensors). By default the goal of
    the model, or `last` if it has none."""
    reward: Literal["vip", "uvd", "pixel"] | None = None
    """vip: distance to the goal. uvd: distance to one subgoal after the other. pixel: vip on thumbnails, a baseline.
    By default the reward of the model."""
    model: Path = DEFAULT_BUNDLE
    """Folder of the bundle; `v2r models` lists those that are installed."""
    out: Path = Path("out/score")
    """Folder to write to."""
    json: bool = False
    """Print the summary as JSON instead of a table."""
    overlay: bool = False
    """Also write overlay.mp4: the video with progress and subgoals on it."""
    threads: int = 0
    """CPU threads of the encoder; 0 takes all cores."""

    def run(self) -> int:
        """Scores, writes and reports.

        Raises:
            ValueError, OSError: video, goal or model cannot be used; the message says which and why.
        """
        with open_video(self.video) as video:
            scorer = Scorer(load_bundle(self.model), self.reward, threads=self.threads)
            scored, targets = self._score(scorer, video)
            self.out.mkdir(parents=True, exist_ok=True)
            summary = self._summarise(scorer, video, scored)
            write_csv(self.out / "curve.csv", scored)
            (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            title = f"{video.name}  ·  {scorer.reward_name}, {summary['model']['name']}"
            draw_curve(self.out / "curve.png", video.__getitem__, scored.stamps, scored.curve, title)
            if self.overlay:
                names = [Status(number).name.lower() for number in scored.status]
                write_overlay(self.out / "overlay.mp4", video, scored.curve, names, targets, video.fps)
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            Console().print(_report(summary), f"written to {self.out}")
        return 0

    def _score(self, scorer: Scorer, video: Video) -> tuple[VideoScore, list[Frame]]:
        """The scored video, and a picture of each subgoal as far as there is one."""
        if self.goal and not scorer.reward.needs_goal:
            raise ValueError(
                f"--goal {self.goal}: the reward {scorer.reward_name!r} compares with no goal; leave --goal away, or "
                "take --reward vip"
            )
        goal = self.goal or ("" if scorer.goal or not scorer.reward.needs_goal else LAST)
        # Standard error, so that a pipe gets the summary and nothing else.
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

            def ticks(what: str, total: int) -> Callable[[int, int], None]:
                task = bar.add_task(what, total=total)
                return lambda done, _: bar.update(task, completed=done)

            if goal == LAST:
                scored, own = score_towards_own_end(scorer, video, ticks("scoring", len(video)))
                return scored, subgoal_pictures(video, own)
            targets = _set_goal(scorer, goal, ticks) if goal else []
            return scorer.score(video, ticks("scoring", len(video))), targets

    def _summarise(self, scorer: Scorer, video: Video, scored: VideoScore) -> dict[str, Any]:
        curve, count = scored.curve, len(scored.curve)
        goal = scorer.goal
        own = goal is not None and (self.goal == LAST or (self.goal is None and scorer.bundle.manifest.goal is None))
        changes = np.flatnonzero(np.diff(curve.subgoal_index, prepend=-1))
        known = curve.progress[np.isfinite(curve.progress)]
        return {
            "video": video.name,
            "frames": count,
            "duration_s": _rounded(scored.stamps[-1] - scored.stamps[0]),
            "reward": scorer.reward_name,
            "goal": goal.name if goal else None,
            "goal_is_own_last_frame": own,
            "calibrated": goal.has_demonstration if goal else False,
            "mean_reward": _rounded(float(np.mean(curve.raw_reward[np.isfinite(curve.raw_reward)])))
            if np.isfinite(curve.raw_reward).any()
            else None,
            # The end of the video is the goal itself there, and would only flatter.
            "voc": _rounded(voc(curve.value, scored.stamps, exclude_goal=own)),
            "bumps": _rounded(bumps(curve.value)),
            "final_progress": _rounded(known[-1] if len(known) else math.nan),
            "subgoals": [
                {"index": int(curve.subgoal_index[at]), "from_frame": int(at), "from_s": _rounded(scored.stamps[at])}
                for at in changes
            ],
            "subgoal_count": int(curve.subgoal_count[-1]),
            "status": {Status(key).name.lower(): n for key, n in sorted(Counter(scored.status.tolist()).items())},
            "encoder_ms_per_frame": _rounded(scored.encoder_ms),
            "frames_per_s": _rounded(count / scored.seconds),
            "model": {
                "name": scorer.bundle.manifest.name,
                "sha256": scorer.bundle.sha256,
                "precision": scorer.session.precision,
                "provider": scorer.session.provider,
            },
        }


def _set_goal(scorer: Scorer, goal: str, ticks: Callable[[str, int], Callable[[int, int], None]]) -> list[Frame]:
    """Makes the goal out of a file and puts it in force; gives pictures of its subgoals."""
    path = Path(goal).expanduser()
    if path.suffix.lower() == GOAL_SUFFIX:
        scorer.set_goal(load_goal(path))
        return []
    if is_image(path):
        image = read_goal_image(path)
        scorer.set_goal(scorer.goal_from_frames([image], goal_name(path.name)))
        return [image]
    with open_video(goal) as demonstration:
        frames = Counted(demonstration, ticks("demonstration", len(demonstration)))
        scorer.set_goal(scorer.goal_from_video(frames, goal_name(demonstration.name)))
        assert scorer.goal is not None
        return subgoal_pictures(demonstration, scorer.goal)


def write_csv(path: Path, scored: VideoScore) -> None:
    """Writes one row a frame; `nan` stands for a number that is not available."""
    curve = scored.curve
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "stamp", "reward", "value", "progress", "subgoal", "uncertainty", "status"])
        for i in range(len(curve)):
            numbers = (curve.reward[i], curve.value[i], curve.progress[i])
            row = [i, f"{scored.stamps[i]:.6f}", *(f"{number:.6g}" for number in numbers)]
            status = Status(scored.status[i]).name.lower()
            writer.writerow([*row, int(curve.subgoal_index[i]), f"{curve.uncertainty[i]:.6g}", status])


def _rounded(number: float) -> float | None:
    """Six digits for the summary; JSON has no NaN."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _report(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    frames = f"{summary['frames']} in {summary['duration_s']:.1f} s"
    own = " (its own end)" if summary["goal_is_own_last_frame"] else ""
    rows = {
        "video": f"{summary['video']}, {frames}",
        "goal": (summary["goal"] or "none") + own,
        "mean reward of a step": _shown(summary["mean_reward"], ".4g"),
        "value-order correlation": _shown(summary["voc"]),
        "steps away from the goal": _shown(summary["bumps"], ".0%"),
        "final progress": _shown(summary["final_progress"]),
        "working towards, at the end": f"subgoal {summary['subgoals'][-1]['index'] + 1} of {summary['subgoal_count']}",
        "frames": ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in summary["status"].items()),
        "speed": f"{summary['frames_per_s']:.0f} frames/s ({summary['model']['provider']})",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _shown(number: float | None, form: str = ".3f") -> str:
    return "not available" if number is None else format(number, form)
