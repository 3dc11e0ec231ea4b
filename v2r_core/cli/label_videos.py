"""`v2r label` of videos."""

from __future__ import annotations

import json
import time
from typing import Any

from v2r_core.cli.label_options import LabelOptions
from v2r_core.cli.label_report import cost, cost_rows, counted, print_report, progress
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.video_sources import FoundSources
from v2r_core.label.videos import LabelledVideos, VideosTask, label_videos


def run_videos(options: LabelOptions, found: FoundSources | None = None) -> int:
    """Labels videos and reports; 1 if one of them failed.

    Args:
        options: what was asked for.
        found: see `label_videos`.

    Raises:
        ValueError, RuntimeError, OSError: see `label_videos`.
    """
    start = time.perf_counter()
    task = VideosTask(options.sources, options.out, options.goal, options.overlay, options.force)
    labeller = LabellerOptions(options.model, options.reward, options.threads)
    with progress() as on_progress:
        done = label_videos(task, labeller, options.workers, options.ray_address(), on_progress, found)
    summary = _summarise(options, done, time.perf_counter() - start)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        print_report(_rows(summary), done.failed, "video", options.out)
    return 1 if done.failed else 0


def _summarise(options: LabelOptions, done: LabelledVideos, seconds: float) -> dict[str, Any]:
    record = done.record
    return {
        "root": record.root,
        "out": str(options.out),
        "videos": done.found,
        "kept": done.kept,
        "labelled": done.labelled,
        "failed": done.failed,
        "left_out": done.left_out,
        "unused_goals": done.unused_goals,
        "frames": done.frames,
        "video_s": done.video_seconds,
        "reward": record.reward,
        "status": {status.name.lower(): number for status, number in sorted(done.statuses.items())},
        "cost": cost(done.frames, done.video_seconds, seconds, done.busy_seconds, done.cpu_seconds),
        "model": {"name": record.model, "sha256": record.model_sha256},
    }


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    rows = {
        "videos": f"{summary['videos']} found in {summary['root']}, {summary['labelled']} labelled, "
        f"{summary['kept']} were done, {len(summary['failed'])} failed",
        "frames": f"{summary['frames']}: {counted(summary['status'])}" if summary["frames"] else "none",
        **cost_rows(summary["cost"], "frames"),
        **{f"left out: {path}": reason for path, reason in summary["left_out"].items()},
    }
    if summary["unused_goals"]:
        rows["goals of no video"] = ", ".join(summary["unused_goals"])
    return rows
