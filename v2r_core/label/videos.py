"""Labels a folder of videos: a table a video, overlay videos if wanted, and a list of what is done."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from v2r_core.deploy.bundle import Bundle, load_bundle
from v2r_core.deploy.cameras import PLACEHOLDER
from v2r_core.deploy.stream import Status
from v2r_core.label.goals import BUNDLE, LAST
from v2r_core.label.outcome import Outcome
from v2r_core.label.pool import label_all
from v2r_core.label.set_writer import LabelledSet, Looks, ManifestLine, SetRecord, SetWriter, find_shared, work_off
from v2r_core.label.table import need_tables, write_labels
from v2r_core.label.video_goals import VideoGoals, goal_file, plan_video_goals
from v2r_core.label.video_labeller import LabellerOptions, VideoTask
from v2r_core.label.video_sources import FoundSources, VideoSource, measure
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
class LabelledVideos(LabelledSet):
    """What came of it.

    Attributes:
        unused_goals: patterns of the table of goals that fit no video.
        video_seconds: how long the frames play that this run labelled.
    """

    unused_goals: list[str] = field(default_factory=list)
    video_seconds: float = 0.0


def label_videos(
    task: VideosTask,
    options: LabellerOptions,
    workers: int = 0,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    found: FoundSources | None = None,
) -> LabelledVideos:
    """Labels videos, each as one episode.

    A video of which `out` has labels of the same model, reward and goal, and which has not changed since, is left as it
    is. So a run that was interrupted, even killed, goes on where it stopped when it is started again, and videos that
    failed are tried again. A video that fails keeps no labels of an earlier state of it; where there are labels of what
    it is now and only the overlay fails, they stay. Overlays of an earlier state go with its labels.

    Args:
        task: which videos, where to.
        options: the model; its path is made absolute.
        workers: see `label_all`.
        ray: see `label_all`.
        on_progress: called with (videos done, videos in all).
        found: what `find_shared` has found of the sources for `out`; None: it is looked for.

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
    found = found or find_shared(task.sources, task.out)
    record = set_record("videos", found.root, bundle, options.reward)
    _check_goal(bundle, record, task.goal)
    goals = plan_video_goals(task.goal)
    result = LabelledVideos(record, len(found.sources), left_out=found.left_out)
    result.unused_goals = goals.unused([source.name for source in found.sources])
    with SetWriter(task.out, record, task.force) as out:
        run = _Run(task.overlay, goals, _own_goal(bundle, record), out, result)
        start = partial(label_all, options=options, workers=workers, ray=ray)
        work_off(run, found.sources, start, on_progress)
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
        goal: where the goal comes from; a file or folder that changes makes another key. Files of several cameras are
            for the caller to look at.
        choices: what else matters.

    Raises:
        OSError: the goal has gone.
    """
    file = None if goal in (BUNDLE, LAST, "") or PLACEHOLDER in goal else goal_file(goal)
    parts = [record.model_sha256, record.reward, goal, measure(file) if file is not None else None, *choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class _Run:
    """See `SetRun`."""

    def __init__(self, overlay: bool, goals: VideoGoals, own_goal: str, out: SetWriter, result: LabelledVideos) -> None:
        self._overlay, self._goals, self._own_goal = overlay, goals, own_goal
        self._out, self.result = out, result
        self._keys: dict[str, str] = {}
        self._seen: dict[str, Looks] = {}

    def has_to_do(self, source: VideoSource) -> bool:
        name = source.name
        self._seen[name] = (0, 0, "")
        try:
            self._seen[name] = (*measure(source.path), self._key(self._goals.of(name)))
        except (OSError, ValueError) as error:
            self._fail(name, 0.0, describe(error))
            return False
        if self._has_labels(name) and (not self._overlay or self._out.overlay(name).is_file()):
            self.result.kept += 1
            return False
        return True

    def task_of(self, source: VideoSource) -> VideoTask:
        overlay = self._out.overlay(source.name).absolute() if self._overlay else None
        return VideoTask(str(source.path), source.name, self._goals.of(source.name), overlay)

    def take(self, source: VideoSource, outcome: Outcome) -> None:
        """Writes the labels, and after them that they are there."""
        name, labels, result = source.name, outcome.labels, self.result
        result.busy_seconds += outcome.seconds
        result.cpu_seconds += outcome.cpu_seconds
        if labels is None:
            self._fail(name, outcome.seconds, outcome.error)
            return
        if not self._overlay:
            self._out.overlay(name).unlink(missing_ok=True)
        write_labels(self._out.table(name), labels)
        self._out.add(ManifestLine.of(name, "done", len(labels), outcome.seconds, "", self._seen[name]))
        result.labelled += 1
        result.frames += len(labels)
        fps = mean_rate(labels.stamps)
        result.video_seconds += len(labels) / fps if math.isfinite(fps) else 0.0
        result.statuses.update(Status(number) for number in labels.status)

    def _has_labels(self, name: str) -> bool:
        """Whether there are labels of the video as it is now."""
        line = self._out.lines.get(name)
        return line is not None and line.says("done", self._seen[name]) and self._out.table(name).is_file()

    def _fail(self, name: str, seconds: float, error: str) -> None:
        self.result.failed[name] = error
        if self._has_labels(name):
            return
        # What is there was made of something else than what is there now.
        self._out.table(name).unlink(missing_ok=True)
        self._out.overlay(name).unlink(missing_ok=True)
        self._out.add(ManifestLine.of(name, "failed", 0, seconds, error, self._seen[name]))

    def _key(self, goal: str | None) -> str:
        chosen = self._own_goal if goal is None else goal
        if chosen not in self._keys:
            self._keys[chosen] = label_key(self.result.record, chosen)
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
