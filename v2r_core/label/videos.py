"""Labels a folder of videos: a table a video, overlay videos if wanted, and a list of what is done."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from v2r_core.deploy.bundle import Bundle, load_bundle
from v2r_core.deploy.stream import Status
from v2r_core.label.goals import BUNDLE, LAST
from v2r_core.label.outcome import Outcome
from v2r_core.label.pool import label_all
from v2r_core.label.set_writer import Looks, ManifestLine, SetRecord, SetWriter, read_record
from v2r_core.label.table import need_tables, write_labels
from v2r_core.label.video_goals import VideoGoals, goal_file, plan_video_goals
from v2r_core.label.video_labeller import LabellerOptions, VideoTask
from v2r_core.label.video_sources import VideoSource, find_sources, measure
from v2r_core.label.workers import describe
from v2r_core.video.video import mean_rate


@dataclass(frozen=True)
class VideosTask:
    """What is to be labelled.

    Attributes:
        sources: videos and folders of videos; see `find_sources`.
        out: the labelled folder: `set.json`, `manifest.jsonl`, labels/NAME.parquet, overlays/NAME.mp4.
        goal: see `plan_video_goals`.
        overlay: write overlay videos.
        force: throw away labels of another model or reward that `out` holds.
    """

    sources: tuple[Path, ...]
    out: Path
    goal: str | None = None
    overlay: bool = False
    force: bool = False


@dataclass
class LabelledVideos:
    """What came of it.

    Attributes:
        record: what `out` holds.
        videos: that were found.
        kept: of these, done by an earlier run.
        labelled: done by this run.
        failed: name of each that failed in this run, and why.
        left_out: what was not gone into, and why.
        unused_goals: patterns of the table of goals that fit no video.
        frames: that this run labelled.
        video_seconds: how long they play.
        busy_seconds: wall time of all workers together, their start not included.
        cpu_seconds: processor time of all workers together.
        statuses: number of frames of each status.
    """

    record: SetRecord
    videos: int = 0
    kept: int = 0
    labelled: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unused_goals: list[str] = field(default_factory=list)
    frames: int = 0
    video_seconds: float = 0.0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)


def label_videos(
    task: VideosTask,
    options: LabellerOptions,
    workers: int = 0,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledVideos:
    """Labels videos, each as one episode.

    A video of which `out` has labels of the same model, reward and goal, and which has not changed since, is left as it
    is. So a run that was interrupted, even killed, goes on where it stopped when it is started again, and videos that
    failed are tried again. A video that fails keeps no labels of an earlier state of it.

    Args:
        task: which videos, where to.
        options: the model; its path is made absolute.
        workers: see `label_all`.
        ray: see `label_all`.
        on_progress: called with (videos done, videos in all).

    Raises:
        FileNotFoundError: no such video, folder or goal.
        FileExistsError: `out` holds something else, or another run is at work on it.
        BundleError, ValueError: the model cannot be loaded; there is no video; the table of goals is none.
        RuntimeError: pyarrow is not installed; see also `label_all`.
        OSError: the labels cannot be written.
    """
    need_tables()
    bundle = load_bundle(options.model)
    options = LabellerOptions(bundle.path.resolve(), options.reward, options.threads, options.providers)
    found = find_sources(task.sources, task.out, _root_of(task))
    record = set_record("videos", found.root, bundle, options.reward)
    _check_goal(bundle, record, task.goal)
    goals = plan_video_goals(task.goal)
    result = LabelledVideos(record, len(found.sources), left_out=found.left_out)
    result.unused_goals = goals.unused([source.name for source in found.sources])
    with SetWriter(task.out, record, task.force) as out:
        run = _Run(task.overlay, goals, _own_goal(bundle, record), out, result)
        waiting = [source for source in found.sources if run.has_to_do(source)]
        done = result.kept + len(result.failed)
        tasks = [run.task_of(source) for source in waiting]
        with closing(label_all(tasks, options, workers, ray)) as outcomes:
            for outcome in outcomes:
                run.take(waiting[outcome.number], outcome)
                done += 1
                if on_progress is not None:
                    on_progress(done, result.videos)
    return result


def set_record(kind: Literal["videos", "bags"], root: Path, bundle: Bundle, reward: str | None) -> SetRecord:
    """What a folder of labels holds.

    Args:
        kind: see `SetRecord`.
        root: of what is labelled.
        bundle: the model.
        reward: see `Scorer`.
    """
    own = bundle.manifest.reward
    return SetRecord(
        kind=kind,
        root=str(root),
        model=bundle.manifest.name,
        model_sha256=bundle.sha256,
        reward=reward or own.name,
        # Only a bundle's own reward scores steps; all that can be chosen besides are values.
        reward_kind=own.kind if reward in (None, own.name) else "value",
    )


def label_key(record: SetRecord, goal: str, *choices: str) -> str:
    """What labels depend on besides the video, in 32 characters.

    Args:
        record: has model and reward.
        goal: where the goal comes from; a file or folder that changes makes another key.
        choices: what else matters.

    Raises:
        OSError: the goal has gone.
    """
    file = None if goal in (BUNDLE, LAST, "") else goal_file(goal)
    parts = [record.model_sha256, record.reward, goal, measure(file) if file is not None else None, *choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class _Run:
    """Labels on their way into a folder."""

    def __init__(self, overlay: bool, goals: VideoGoals, own_goal: str, out: SetWriter, result: LabelledVideos) -> None:
        self._overlay, self._goals, self._own_goal = overlay, goals, own_goal
        self._out, self._result = out, result
        self._keys: dict[str, str] = {}
        self._seen: dict[str, Looks] = {}

    def has_to_do(self, source: VideoSource) -> bool:
        """Whether a video has to be labelled; counts it if not."""
        name = source.name
        seen: Looks = (0, 0, "")
        try:
            seen = (*measure(source.path), self._key(self._goals.of(name)))
        except (OSError, ValueError) as error:
            self._fail(name, seen, 0.0, describe(error))
            return False
        self._seen[name] = seen
        line = self._out.lines.get(name)
        done = line is not None and line.says("done", seen) and self._out.table(name).is_file()
        if done and not (self._overlay and not self._out.overlay(name).is_file()):
            self._result.kept += 1
            return False
        return True

    def task_of(self, source: VideoSource) -> VideoTask:
        overlay = self._out.overlay(source.name).absolute() if self._overlay else None
        return VideoTask(str(source.path), source.name, self._goals.of(source.name), overlay)

    def take(self, source: VideoSource, outcome: Outcome) -> None:
        """Writes the labels, and after them that they are there."""
        name, seen, labels, result = source.name, self._seen[source.name], outcome.labels, self._result
        result.busy_seconds += outcome.seconds
        result.cpu_seconds += outcome.cpu_seconds
        if labels is None:
            self._fail(name, seen, outcome.seconds, outcome.error)
            return
        write_labels(self._out.table(name), labels)
        self._out.add(ManifestLine.of(name, "done", len(labels), outcome.seconds, "", seen))
        result.labelled += 1
        result.frames += len(labels)
        fps = mean_rate(labels.stamps)
        result.video_seconds += len(labels) / fps if math.isfinite(fps) else 0.0
        result.statuses.update(Status(number) for number in labels.status)

    def _fail(self, name: str, seen: Looks, seconds: float, error: str) -> None:
        # What is there was made of something else than what is there now.
        self._out.table(name).unlink(missing_ok=True)
        self._out.overlay(name).unlink(missing_ok=True)
        self._out.add(ManifestLine.of(name, "failed", 0, seconds, error, seen))
        self._result.failed[name] = error

    def _key(self, goal: str | None) -> str:
        chosen = self._own_goal if goal is None else goal
        if chosen not in self._keys:
            self._keys[chosen] = label_key(self._result.record, chosen)
        return self._keys[chosen]


def _takes_goal(bundle: Bundle, record: SetRecord) -> bool:
    if record.reward == "time":
        return bundle.manifest.reward.parameters.get("form") == "goal"
    return record.reward_kind == "value"


def _own_goal(bundle: Bundle, record: SetRecord) -> str:
    """Where the goal of a video comes from that is given none."""
    if not _takes_goal(bundle, record):
        return ""
    return BUNDLE if bundle.manifest.goal and record.reward != "pixel" else LAST


def _check_goal(bundle: Bundle, record: SetRecord, goal: str | None) -> None:
    if goal is not None and not _takes_goal(bundle, record):
        raise ValueError(
            f"--goal {goal}: the reward {record.reward!r} compares with no goal; leave --goal away, or take "
            "--reward vip"
        )


def _root_of(task: VideosTask) -> Path | None:
    """The root of what `out` holds already, if it is that of these videos too: labels of more videos join it."""
    there = read_record(task.out)
    if there is None:
        return None
    paths = (Path(os.path.normpath(path.expanduser().absolute())) for path in task.sources)
    return Path(there.root) if all(path.is_relative_to(there.root) for path in paths) else None
