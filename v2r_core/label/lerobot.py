"""Labels a LeRobotDataset v3: the same dataset with rewards in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.goals import LAST, GoalPlan, GoalTable, OneGoal, OwnEnds, plan_goals
from v2r_core.label.lerobot_copy import LABELS, NEXT_REWARD, RECORD, Columns, LabelledCopy, label_columns, no_labels
from v2r_core.label.lerobot_tables import write_json
from v2r_core.label.partial import PartialFolder
from v2r_core.label.table import Labels, TableError, read_labels, write_labels
from v2r_core.label.video_labeller import LabellerOptions, VideoTask
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.lerobot_schema import Feature


@dataclass(frozen=True)
class DatasetTask:
    """What is to be labelled, and how.

    Attributes:
        dataset: folder of a LeRobotDataset v3.
        out: folder of the labelled one.
        camera: feature that is looked at; None: the only camera.
        goal: see `plan_goals`.
        replace_reward: replace `next.reward` where the dataset has it; else it stays as it is.
        force: replace `out` if it is there.
    """

    dataset: Path
    out: Path
    camera: str | None = None
    goal: str | None = None
    replace_reward: bool = False
    force: bool = False


@dataclass(frozen=True)
class LabelledDataset:
    """What came of it.

    Attributes:
        episodes: of the dataset.
        frames: of all episodes.
        fps: their rate.
        labelled: frames that this run has labelled.
        busy_seconds: wall time of all workers together for them, their start not included.
        cpu_seconds: processor time of all workers together for them.
        resumed: episodes that an interrupted run had labelled already.
        failed: why, by number of the episode.
        without_goal: episodes that the table of goals does not name.
        features: names of the features that were written.
        camera: what was looked at.
        reward: vip, uvd, time...
    """

    episodes: int
    frames: int
    fps: float
    labelled: int
    busy_seconds: float
    cpu_seconds: float
    resumed: int
    failed: dict[int, str]
    without_goal: tuple[int, ...]
    features: tuple[str, ...]
    camera: str
    reward: str


@dataclass(frozen=True)
class _Model:
    """What is known of the model before it labels."""

    name: str
    sha256: str
    reward: str
    kind: str


def label_dataset(
    task: DatasetTask,
    options: LabellerOptions,
    workers: int = 0,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledDataset:
    """Writes a copy of a dataset in which every frame has a label.

    The original stays as it is; videos are second names of its own (hard links) where the file system allows it, else
    copies. Besides the features of `LABELS` the copy has

    * `next.reward`, unless the dataset has one: the reward of the step that begins at a frame, hence NaN at the last
      frame of an episode, and wherever there is no reward;
    * `sarm_progress.parquet`, which LeRobot's reward-weighted training (RA-BC) reads, with the progress of every frame
      as `progress_sparse`, its default. NaN stays NaN there: that reader leaves such frames out of its statistics and
      gives them its `rabc` fallback weight. A file of that name in the original is not taken over;
    * `meta/v2r_labels.json`, which says what labelled it.

    The copy appears under its name only when it is complete. Until then a folder `OUT.partial` keeps the labels of the
    episodes that are done, and a run that is started again goes on from there. An episode that cannot be labelled has
    NaN and the status `INTERNAL_ERROR`, one that the table of goals does not name `NO_GOAL`.

    Args:
        task: what and how.
        options: the model.
        workers: see `label_all`.
        ray: see `label_all`.
        on_progress: called with (episodes done, episodes in all).

    Raises:
        VideoError: the dataset cannot be read, or has no such camera.
        FileExistsError: `out` is there already, or another run is at work on it.
        ValueError: the goals cannot be used, the dataset has labels already, or no episode could be labelled.
        BundleError, ProviderError: see `load_bundle` and `Scorer`.
        OSError: the disk is full, or a file cannot be read or written.
    """
    folder = LeRobotFolder.open(task.dataset)
    camera = folder.choose_camera(task.camera)
    added = _added(folder, task.replace_reward)
    model, plan = _prepare(task, options, folder)
    with PartialFolder(task.out, task.force, {task.dataset}) as partial:
        run = _Run(folder, camera, _Goals(plan, task.goal), model, options, partial.journal)
        run.label(workers, ray, on_progress)
        LabelledCopy(folder, partial.product, added, run.columns, model.name).write()
        record = {"schema_version": 1, "camera": camera, "model": model.name, "model_sha256": model.sha256}
        record |= {"reward": model.reward, "reward_kind": model.kind, "goal_source": _goal_source(plan, task.goal)}
        write_json(partial.product / RECORD, record)
        partial.finish()
    return LabelledDataset(
        episodes=folder.episodes,
        frames=sum(folder.length(episode) for episode in range(folder.episodes)),
        fps=folder.fps,
        labelled=run.labelled,
        busy_seconds=run.busy_seconds,
        cpu_seconds=run.cpu_seconds,
        resumed=run.resumed,
        failed=dict(sorted(run.failed.items())),
        without_goal=tuple(run.without_goal),
        features=tuple(added),
        camera=camera,
        reward=model.reward,
    )


def _goal_source(plan: GoalPlan, given: str | None) -> str:
    if isinstance(plan, OwnEnds):
        return LAST
    return plan.source if isinstance(plan, OneGoal) else given or ""


def _added(folder: LeRobotFolder, replace_reward: bool) -> dict[str, Feature]:
    """The features that the copy gets."""
    if (folder.path / RECORD).exists() or set(LABELS) & set(folder.features):
        raise ValueError(f"{folder.path}: has labels already; label the dataset that it was made from")
    if folder.episodes == 0:
        raise ValueError(f"{folder.path}: no episode in this dataset; nothing to label")
    if NEXT_REWARD in folder.features and not replace_reward:
        return dict(LABELS)
    return LABELS | {NEXT_REWARD: Feature(dtype="float32", shape=(1,))}


def _prepare(task: DatasetTask, options: LabellerOptions, folder: LeRobotFolder) -> tuple[_Model, GoalPlan]:
    """Loads the model once before any worker does, so that a wrong goal is found before the work begins."""
    bundle = load_bundle(options.model)
    scorer = Scorer(bundle, options.reward, providers=options.providers, threads=options.threads)
    plan = plan_goals(scorer, task.goal)
    if isinstance(plan, GoalTable) and (wrong := [number for number in plan.files if number >= folder.episodes]):
        raise ValueError(
            f"{task.goal}: episode {min(wrong)} has a goal, but {folder.path} has {folder.episodes} episodes, counted "
            "from 0"
        )
    return _Model(bundle.manifest.name, bundle.sha256, scorer.reward_name, scorer.reward.kind), plan


@dataclass(frozen=True)
class _Goals:
    """The goal of every episode, as `VideoTask` has it.

    Attributes:
        plan: what was found out about it.
        given: what was asked for.
    """

    plan: GoalPlan
    given: str | None

    def of(self, episode: int) -> str | None:
        """Absolute, since a worker may run elsewhere."""
        goal = self.plan.source(episode) if isinstance(self.plan, GoalTable) else self.given
        return goal if goal is None or goal == LAST else str(Path(goal).expanduser().absolute())

    def lacks(self, episode: int) -> bool:
        """True if a table names no goal for it."""
        return isinstance(self.plan, GoalTable) and self.plan.source(episode) is None


class _Run:
    """The labels of the episodes, kept as files as they come.

    Attributes:
        labelled, busy_seconds, cpu_seconds: see `LabelledDataset`.
        resumed: episodes whose labels were there already.
        failed: why, by number of the episode.
        without_goal: episodes that have no goal.
    """

    def __init__(
        self,
        folder: LeRobotFolder,
        camera: str,
        goals: _Goals,
        model: _Model,
        options: LabellerOptions,
        tables: Path,
    ) -> None:
        self._folder, self._camera, self._goals, self._options = folder, camera, goals, options
        self._identity = [model.sha256, model.reward, list(options.providers), camera]
        self._tables = tables
        self._known: dict[str | None, list[object]] = {}
        self.resumed = self.labelled = 0
        self.busy_seconds = self.cpu_seconds = 0.0
        self.failed: dict[int, str] = {}
        self.without_goal: list[int] = []

    def label(self, workers: int, ray: str | None, on_progress: Callable[[int, int], None] | None) -> None:
        """Labels all episodes that have no labels yet.

        Raises:
            ValueError: not a single one could be.
        """
        from v2r_core.label.pool import label_all  # noqa: PLC0415 (what it imports is not needed to read a dataset)

        left: list[int] = []
        for episode in range(self._folder.episodes):
            if self._goals.lacks(episode):
                self.without_goal.append(episode)
            elif self._kept(episode) is None:
                left.append(episode)
        total = self._folder.episodes
        self.resumed = done = total - len(left) - len(self.without_goal)
        tasks = [self._task(episode) for episode in left]
        with closing(label_all(tasks, self._options, workers, ray)) as outcomes:
            for outcome in outcomes:
                self._keep(left[outcome.number], outcome.labels, outcome.error)
                self.labelled += len(outcome.labels or ())
                self.busy_seconds += outcome.seconds
                self.cpu_seconds += outcome.cpu_seconds
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        if self.failed and len(self.failed) + len(self.without_goal) == total:
            number, error = min(self.failed.items())
            raise ValueError(f"{self._folder.path}: no episode could be labelled; episode {number}: {error}")

    def columns(self, episode: int) -> Columns:
        """The labels of an episode, for `LabelledCopy`."""
        if (labels := self._kept(episode)) is not None and episode not in self.failed:
            return label_columns(labels)
        status = Status.NO_GOAL if self._goals.lacks(episode) else Status.INTERNAL_ERROR
        return no_labels(self._folder.length(episode), status)

    def _task(self, episode: int) -> VideoTask:
        source = f"{self._folder.path.absolute()}#{episode}/{self._camera}"
        return VideoTask(source, f"{self._folder.path.absolute().name}#{episode}", self._goals.of(episode))

    def _keep(self, episode: int, labels: Labels | None, error: str) -> None:
        length = self._folder.length(episode)
        if labels is None or len(labels) != length:
            self.failed[episode] = error or f"{len(labels or ())} labels for {length} frames"
        else:
            write_labels(self._table(episode), labels)

    def _kept(self, episode: int) -> Labels | None:
        """The labels of an episode, if they were made from what would be taken now."""
        try:
            labels = read_labels(self._table(episode))
        except (FileNotFoundError, TableError):
            return None
        return labels if len(labels) == self._folder.length(episode) else None

    def _table(self, episode: int) -> Path:
        """The file of an episode's labels. Its name has a hash of all that decides them: a stale one is never found."""
        goal = self._goals.of(episode)
        if goal not in self._known:
            self._known[goal] = _contents(goal)
        files = [self._folder.data_file(episode)]
        if self._folder.features[self._camera].dtype == "video":
            files.append(self._folder.video_file(episode, self._camera))
        origin = [*self._identity, self._known[goal], [_version(file) for file in files], self._folder.length(episode)]
        key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:24]
        return self._tables / f"episode-{episode:06d}-{key}.parquet"


def _contents(goal: str | None) -> list[object]:
    """What tells a goal from another one: its name, and size and time of the files behind it."""
    if goal is None or goal == LAST:
        return [goal]
    path = Path(goal).expanduser()
    for mark in (":/", "#"):
        if not path.exists():
            path = Path(str(path).rpartition(mark)[0] or path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [goal, *([str(file), *_version(file)] for file in files)]


def _version(file: Path) -> list[int]:
    """Size and time of the last change; nothing for a file that is not there."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
