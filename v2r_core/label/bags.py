"""Labels many rosbags: each one as `rosbag.label_bag` does, several at the same time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.labeller import LabelCounts
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.label.set_writer import Looks, ManifestLine, SetRecord, SetWriter, State
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.video_sources import VideoSource, find_sources, measure
from v2r_core.label.videos import label_key, set_record
from v2r_core.label.workers import Done, run_all


@dataclass
class LabelledBags:
    """What came of it.

    Attributes:
        record: what `out` holds.
        bags: that were found.
        kept: of these, done by an earlier run.
        labelled: done by this run.
        failed: name of each that failed in this run, and why.
        left_out: what was not gone into, and why.
        images: that this run labelled.
        episodes: in them.
        busy_seconds: wall time of all workers together, their start not included.
        cpu_seconds: processor time of all workers together.
        statuses: number of labels of each status.
    """

    record: SetRecord
    bags: int = 0
    kept: int = 0
    labelled: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    images: int = 0
    episodes: int = 0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)


def label_bags(
    sources: tuple[Path, ...],
    like: BagTask,
    options: LabellerOptions,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledBags:
    """Labels every bag in folders, each into a bag of its own name in `like.out`.

    What is done already with the same model, reward, goal and options, and whose original has not changed since, is
    left as it is. A run that was interrupted goes on in the middle of the bags that it was at.

    Args:
        sources: bags and folders of bags.
        like: all that is the same for all of them; its `bag` means nothing, `out` is the folder for the labelled bags.
        options: the model.
        workers: see `run_all`.
        on_progress: called with (bags done, bags in all).

    Raises:
        FileExistsError: `like.out` holds something else, or another run is at work on it.
        BundleError, ProviderError, ValueError: the model cannot be loaded; there is no bag.
        OSError: the list of what is done cannot be written. A bag that cannot be written only fails.
    """
    bundle = load_bundle(options.model)
    found = find_sources(sources, like.out)
    result = LabelledBags(set_record("bags", found.root, bundle, options.reward), len(found.sources))
    result.left_out = found.left_out
    with SetWriter(like.out, result.record, like.force) as out:
        run = _Run(like, out, result)
        waiting = [source for source in found.sources if run.has_to_do(source)]
        done = result.kept + len(result.failed)
        tasks = [run.task_of(source) for source in waiting]
        with closing(run_all(partial(_make, options), tasks, workers)) as answers:
            for answer in answers:
                run.take(waiting[answer.number], answer)
                done += 1
                if on_progress is not None:
                    on_progress(done, result.bags)
    return result


def _make(options: LabellerOptions) -> Callable[[BagTask], LabelCounts]:
    """What labels one bag after the other; a model that does not run is found out here, and not once a bag."""
    bundle = load_bundle(options.model)
    Scorer(bundle, options.reward, threads=options.threads)
    return lambda task: label_bag(task, bundle, options.reward, options.threads).counts


class _Run:
    """Labelled bags on their way into a folder."""

    def __init__(self, like: BagTask, out: SetWriter, result: LabelledBags) -> None:
        self._like, self._out, self._result = like, out, result
        choices = (like.image_topic, like.episode_topic, like.gap, like.namespace)
        self._key = label_key(result.record, like.goal or "", *map(str, choices))
        self._seen: dict[str, Looks] = {}

    def has_to_do(self, source: VideoSource) -> bool:
        """Whether a bag has to be labelled; counts it if not."""
        name = source.name
        self._seen[name] = seen = (*measure(source.path), self._key)
        line, out = self._out.lines.get(name), self.task_of(source).out
        # A bag has its name only when it is complete; a run may have been killed before it could say so.
        if out.exists() and line is not None and (line.says("done", seen) or line.says("begun", seen)):
            self._result.kept += 1
            return False
        if out.exists() and not self._like.force:
            self._fail(name, 0.0, f"{out} exists, and is of another model, goal or bag; --force replaces it")
            return False
        if out.exists():
            shutil.rmtree(out)
        self._say(name, "begun", 0, 0.0, "")
        return True

    def task_of(self, source: VideoSource) -> BagTask:
        name = Path(source.name).with_suffix("") if source.path.is_file() else Path(source.name)
        return replace(self._like, bag=source.path, out=self._like.out / name, force=False)

    def take(self, source: VideoSource, done: Done[LabelCounts]) -> None:
        name, counts, result = source.name, done.result, self._result
        result.busy_seconds += done.seconds
        result.cpu_seconds += done.cpu_seconds
        if counts is None:
            self._fail(name, done.seconds, done.error)
            return
        self._say(name, "done", counts.images, done.seconds, "")
        result.labelled += 1
        result.images += counts.images
        result.episodes += counts.episodes
        result.statuses.update(counts.statuses)

    def _fail(self, name: str, seconds: float, error: str) -> None:
        self._say(name, "failed", 0, seconds, error)
        self._result.failed[name] = error

    def _say(self, name: str, state: State, frames: int, seconds: float, error: str) -> None:
        self._out.add(ManifestLine.of(name, state, frames, seconds, error, self._seen[name]))
