"""`v2r label` of a rosbag, and of a folder of rosbags."""

from __future__ import annotations

import json
import time
from typing import Any

from v2r_core.cli.label_options import LabelOptions
from v2r_core.cli.label_report import cost, cost_rows, counted, plain_console, print_report, progress, rows_table
from v2r_core.deploy.bundle import load_bundle
from v2r_core.label.bag_task import BagTask
from v2r_core.label.bags import LabelledBags, label_bags
from v2r_core.label.rosbag import LabelledBag, label_bag
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.video_sources import FoundSources


def run_bag(options: LabelOptions) -> int:
    """Labels one bag and reports.

    Raises:
        ValueError, OSError: see `label_bag`.
    """
    start = time.perf_counter()
    task = _task(options)
    with progress() as on_progress:
        done = label_bag(task, load_bundle(options.model), options.reward, options.threads, on_progress)
    summary = _summarise(task, done, time.perf_counter() - start)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        plain_console().print(rows_table(_rows(summary)), f"written to {task.out}")
    return 0


def run_bags(options: LabelOptions, found: FoundSources | None = None) -> int:
    """Labels all bags of folders and reports; 1 if one of them failed.

    Raises:
        ValueError, OSError: see `label_bags`.
    """
    start = time.perf_counter()
    labeller = LabellerOptions(options.model, options.reward, options.threads)
    with progress() as on_progress:
        done = label_bags(options.sources, _task(options), labeller, options.workers, on_progress, found)
    summary = _summarise_all(options, done, time.perf_counter() - start)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        loose = {"files": f"{done.loose}, each taken for a bag of its own"} if done.loose else {}
        rows = {
            "bags": f"{done.found} found, {done.labelled} labelled, {done.kept} were done, {len(done.failed)} failed",
            **loose,
            "images": f"{done.frames} in {done.episodes} episodes",
            "labels": counted(summary["status"]),
            **cost_rows(summary["cost"], "images"),
            **{f"left out: {path}": reason for path, reason in done.left_out.items()},
        }
        print_report(rows, done.failed, "bag", options.out)
    return 1 if done.failed else 0


def _task(options: LabelOptions) -> BagTask:
    return BagTask(
        options.sources[0].expanduser(),
        options.out,
        options.image_topic,
        options.goal,
        options.episode_topic,
        options.gap,
        options.namespace,
        options.force,
        options.camera_rule,
        options.max_camera_skew,
        options.camera_progress,
    )


def _summarise_all(options: LabelOptions, done: LabelledBags, seconds: float) -> dict[str, Any]:
    return {
        "root": done.record.root,
        "out": str(options.out),
        "bags": done.found,
        "files": done.loose,
        "kept": done.kept,
        "labelled": done.labelled,
        "failed": done.failed,
        "left_out": done.left_out,
        "images": done.frames,
        "episodes": done.episodes,
        "reward": done.record.reward,
        "status": {status.name.lower(): number for status, number in sorted(done.statuses.items())},
        "cost": cost(done.frames, 0.0, seconds, done.busy_seconds, done.cpu_seconds),
        "model": {"name": done.record.model, "sha256": done.record.model_sha256},
    }


def _summarise(task: BagTask, done: LabelledBag, seconds: float) -> dict[str, Any]:
    counts, scorer = done.counts, done.scorer
    replayed, needed = done.resumed
    return {
        "bag": str(task.bag),
        "out": str(task.out),
        "image_topics": list(done.topics),
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


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    sizes = summary["image_sizes"]
    others = summary["image_topics"][1:]
    left_out = summary["images"] - summary["labels"]
    return {
        "bag": f"{summary['bag']}, {summary['messages']} messages",
        "images": f"{summary['images']} on {summary['image_topics'][0]}, {', '.join(sizes)}"
        + ("; the size changes" if len(sizes) > 1 else ""),
        **({"with those of": ", ".join(others)} if others else {}),
        "left out": f"{left_out}, which came before their turn" if left_out else "none",
        "episodes": str(summary["episodes"]),
        "labels": counted(summary["status"]),
        "taken over": f"{summary['resumed']:.0%} from a run that was interrupted" if summary["resumed"] else "nothing",
        "speed": f"{summary['images_per_s']:.0f} images/s ({summary['model']['provider']})",
        **{name.replace("_", " "): text for name, text in summary["problems"].items()},
    }
