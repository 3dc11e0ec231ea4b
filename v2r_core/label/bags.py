"""Labels many rosbags: each one as `rosbag.label_bag` does, several at the same time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.cameras import PLACEHOLDER
from v2r_core.deploy.goals import camera_files
from v2r_core.label.bag_task import BagTask, make_scorer
from v2r_core.label.goals import GoalPlan, GoalTable, OneGoal, plan_goals
from v2r_core.label.labeller import LabelCounts
from v2r_core.label.rosbag import label_bag
from v2r_core.label.set_writer import LabelledSet, Looks, ManifestLine, SetWriter, State, find_shared, work_off
from v2r_core.label.video_goals import goal_file
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.video_sources import FoundSources, VideoSource, measure
from v2r_core.label.videos import label_key, set_record
from v2r_core.label.workers import Done, describe, run_all


@dataclass
class LabelledBags(LabelledSet):
    """What came of it.

    Attributes:
        episodes: in the images that this run labelled.
        loose: bags that are single files, each taken for a bag of its own.
    """

    episodes: int = 0
    loose: int = 0


def label_bags(
    sources: tuple[Path, ...],
    like: BagTask,
    options: LabellerOptions,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    found: FoundSources | None = None,
) -> LabelledBags:
    """Labels every bag in folders, each into a bag of its own name in `like.out`.

    A single file is a bag of its own, called after it without its suffix, which it keeps where that is the name of
    another bag or of a folder of bags.

    What is done already with the same model, reward, goal and options, and whose original has not changed since, is
    left as it is. A run that was interrupted goes on in the middle of the bags that it was at.

    Args:
        sources: bags and folders of bags.
        like: all that is the same for all of them; its `bag` means nothing, `out` is the folder for the labelled bags.
        options: the model.
        workers: see `run_all`.
        on_progress: called with (bags done, bags in all).
        found: what `find_shared` gives, if the caller has looked already.

    Raises:
        FileNotFoundError: no such bag or goal.
        FileExistsError: `like.out` holds something else, or another run is at work on it.
        BundleError, ProviderError, ValueError: the model cannot be loaded; there is no bag; the goal is none.
        OSError: the list of what is done cannot be written. A bag that cannot be written only fails.
    """
    bundle = load_bundle(options.model)
    found = found or find_shared(sources, like.out)
    # What is wrong with the model or the goal is wrong for all bags, and found out before anything is written.
    names = [camera.name for camera in like.cameras()]
    scorer = make_scorer(like, bundle, options.reward, options.threads, options.providers)
    plan = plan_goals(scorer, like.goal, names)
    result = LabelledBags(set_record("bags", found.root, bundle, options.reward), len(found.sources))
    result.left_out = found.left_out
    result.loose = sum(source.path.is_file() for source in found.sources)
    with SetWriter(like.out, result.record, like.force) as out:
        run = _Run(like, plan, out, result)
        start = partial(run_all, partial(_make, options), workers=workers)
        work_off(run, _named(found.sources), start, on_progress)
    return result


def _named(sources: Sequence[VideoSource]) -> list[VideoSource]:
    """The bags under the names of their copies."""

    def short(source: VideoSource) -> str:
        return str(PurePosixPath(source.name).with_suffix("")) if source.path.is_file() else source.name

    counts = Counter(map(short, sources))
    # A copy must not lie in another one: a.mcap beside a/b.mcap keeps its suffix.
    counts.update({str(folder) for each in sources for folder in PurePosixPath(each.name).parents})
    return [replace(each, name=short(each)) if counts[short(each)] == 1 else each for each in sources]


def _make(options: LabellerOptions) -> Callable[[BagTask], LabelCounts]:
    """What labels one bag after the other."""
    bundle = load_bundle(options.model)
    return lambda task: label_bag(task, bundle, options.reward, options.threads, providers=options.providers).counts


def _goals_of(plan: GoalPlan, names: Sequence[str]) -> list[object]:
    """What the goals of a table, and those of several cameras, look like; a single file is looked at as any goal is."""
    goals: set[str] = set()
    if isinstance(plan, GoalTable):
        goals = {*plan.files.values(), *([] if plan.otherwise is None else [plan.otherwise])}
    elif isinstance(plan, OneGoal) and PLACEHOLDER in plan.source:
        goals = {plan.source}
    files = sorted(file for goal in goals for file in camera_files(goal, names))
    return [measure(path) for file in files if (path := goal_file(file)) is not None]


class _Run:
    """See `SetRun`."""

    def __init__(self, like: BagTask, plan: GoalPlan, out: SetWriter, result: LabelledBags) -> None:
        self._like, self._out, self.result = like, out, result
        cameras = like.cameras()
        several = [like.camera_rule, like.max_camera_skew, like.camera_progress] if len(cameras) > 1 else []
        goals = _goals_of(plan, [camera.name for camera in cameras])
        choices = (*cameras, like.episode_topic, like.gap, like.namespace, *several, *goals)
        self._key = label_key(result.record, like.goal or "", *map(str, choices))
        self._seen: dict[str, Looks] = {}

    def has_to_do(self, source: VideoSource) -> bool:
        name = source.name
        try:
            self._seen[name] = seen = (*measure(source.path), self._key)
        except OSError as error:
            self._seen[name] = (0, 0, "")
            self._fail(name, 0.0, describe(error))
            return False
        line, out = self._out.lines.get(name), self.task_of(source).out
        # A bag has its name only when it is complete; a run may have been killed before it could say so.
        if out.exists() and line is not None and (line.says("done", seen) or line.says("begun", seen)):
            self.result.kept += 1
            return False
        if out.exists() and not self._like.force:
            # No line about it: what is there stays what earlier lines say.
            self.result.failed[name] = f"{out} exists, and is of another model, goal or bag; --force replaces it"
            return False
        if out.exists():
            shutil.rmtree(out)
        self._say(name, "begun", 0, 0.0, "")
        return True

    def task_of(self, source: VideoSource) -> BagTask:
        return replace(self._like, bag=source.path, out=self._like.out / source.name, force=False)

    def take(self, source: VideoSource, done: Done[LabelCounts]) -> None:
        name, counts, result = source.name, done.result, self.result
        result.busy_seconds += done.seconds
        result.cpu_seconds += done.cpu_seconds
        if counts is None:
            self._fail(name, done.seconds, done.error)
            return
        self._say(name, "done", counts.images, done.seconds, "")
        result.labelled += 1
        result.frames += counts.images
        result.episodes += counts.episodes
        result.statuses.update(counts.statuses)

    def _fail(self, name: str, seconds: float, error: str) -> None:
        self._say(name, "failed", 0, seconds, error)
        self.result.failed[name] = error

    def _say(self, name: str, state: State, frames: int, seconds: float, error: str) -> None:
        self._out.add(ManifestLine.of(name, state, frames, seconds, error, self._seen[name]))
