"""`v2r label` of a LeRobotDataset."""

from __future__ import annotations

import json
import time
from typing import Any

from v2r_core.cli.label_options import LabelOptions
from v2r_core.cli.label_report import cost, cost_rows, print_report, progress
from v2r_core.label.lerobot import DatasetTask, LabelledDataset, label_dataset
from v2r_core.label.video_labeller import LabellerOptions

NO_LABELS = "their frames have the status internal_error and NaN for all else; label the dataset again with --force"


def run_dataset(options: LabelOptions) -> int:
    """Labels a dataset and reports; 1 if an episode failed.

    Raises:
        ValueError, RuntimeError, OSError: see `label_dataset`.
    """
    start = time.perf_counter()
    source = options.sources[0].expanduser()
    task = DatasetTask(source, options.out, options.camera, options.goal, options.replace_reward, options.force)
    labeller = LabellerOptions(options.model, options.reward, options.threads)
    with progress() as on_progress:
        done = label_dataset(task, labeller, options.workers, options.ray_address(), on_progress)
    summary = _summarise(task, done, time.perf_counter() - start)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        print_report(_rows(summary), summary["failed"], "episode", options.out, NO_LABELS)
    return 1 if done.failed else 0


def _summarise(task: DatasetTask, done: LabelledDataset, seconds: float) -> dict[str, Any]:
    return {
        "dataset": str(task.dataset),
        "out": str(task.out),
        "camera": done.camera,
        "episodes": done.episodes,
        "frames": done.frames,
        "resumed": done.resumed,
        "failed": {str(number): reason for number, reason in done.failed.items()},
        "without_goal": list(done.without_goal),
        "features": list(done.features),
        "reward": done.reward,
        "cost": cost(done.labelled, done.labelled / done.fps, seconds, done.busy_seconds, done.cpu_seconds),
    }


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    rows = {
        "dataset": f"{summary['dataset']}, {summary['episodes']} episodes, {summary['frames']} frames",
        "camera": summary["camera"],
        "taken over": f"{summary['resumed']} episodes from a run that was interrupted"
        if summary["resumed"]
        else "none",
        "features": ", ".join(summary["features"]),
        **cost_rows(summary["cost"], "frames"),
    }
    if summary["without_goal"]:
        rows["without a goal"] = f"episodes {', '.join(map(str, summary['without_goal']))}"
    return rows
