"""Labels whole videos, one after the other: what one worker does, whether it is the only one or one of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.own_end import score_towards_own_end
from v2r_core.deploy.own_goal import read_goal_pictures
from v2r_core.deploy.stream import Scorer, Status, VideoScore
from v2r_core.label.complete import complete
from v2r_core.label.goals import BUNDLE, LAST, GoalReader
from v2r_core.label.overlay_video import goal_pictures, subgoal_pictures, write_overlay
from v2r_core.label.table import LabelOrigin, Labels
from v2r_core.rewards.goal import Goal
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video


@dataclass(frozen=True)
class LabellerOptions:
    """What a labeller is made from; can be sent to another process.

    Attributes:
        model: folder of the bundle.
        reward: see `Scorer`.
        threads: CPU threads of the encoder.
        providers: see `choose_providers`.
    """

    model: Path
    reward: str | None = None
    threads: int = 1
    providers: tuple[str, ...] = ("auto",)


@dataclass(frozen=True)
class VideoTask:
    """One video to label; can be sent to another process.

    Attributes:
        source: what `open_video` takes.
        name: of the video or episode.
        goal: "last", what `read_goal` takes, or None for the bundle's own, and "last" where it has none.
        overlay: an overlay video to write as well, an mp4.
    """

    source: str
    name: str
    goal: str | None = None
    overlay: Path | None = None


@dataclass(frozen=True)
class _Towards:
    """What a video was compared with.

    Attributes:
        source: where it came from; empty without a goal.
        goal: None without one.
    """

    source: str
    goal: Goal | None


class VideoLabeller:
    """Labels videos with one model. Not thread-safe."""

    def __init__(self, options: LabellerOptions) -> None:
        """Loads the model.

        Raises:
            BundleError, ProviderError, ValueError: see `load_bundle` and `Scorer`.
        """
        bundle = load_bundle(options.model)
        self._scorer = Scorer(bundle, options.reward, providers=options.providers, threads=options.threads)
        self._goals = GoalReader(self._scorer)
        self._own_goal = self._scorer.goal
        self._lean = options.threads == 1

    def label(self, task: VideoTask, on_progress: Callable[[int, int], None] | None = None) -> Labels:
        """Labels one video as one episode.

        Args:
            task: what and towards which goal.
            on_progress: called with (frames done, frames in all).

        Raises:
            FileNotFoundError: no such video or goal.
            ValueError: it is none, it is damaged, or the reward takes no goal.
            OSError: the overlay cannot be written.
        """
        with open_video(task.source, lean=self._lean) as video:
            scored, towards = self._score(video, task.goal, on_progress)
            if task.overlay is not None:
                self._write_overlay(task.overlay, video, scored, towards)
        scorer, bundle = self._scorer, self._scorer.bundle
        origin = LabelOrigin(
            source=task.source,
            name=task.name,
            reward=scorer.reward_name,
            kind=scorer.reward.kind,
            goal=towards.goal.name if towards.goal else "",
            goal_source=towards.source,
            model=bundle.manifest.name,
            model_sha256=bundle.sha256,
        )
        return Labels(origin, scored.stamps, scored.curve, scored.status)

    def _score(
        self, video: Video, goal: str | None, on_progress: Callable[[int, int], None] | None
    ) -> tuple[VideoScore, _Towards]:
        scorer = self._scorer
        if not scorer.reward.needs_goal:
            if goal is not None:
                raise ValueError(
                    f"goal {goal}: the reward {scorer.reward_name!r} compares with no goal; leave the goal away, or "
                    "take the reward vip"
                )
            return scorer.score(video, on_progress), _Towards("", None)
        if goal == LAST or (goal is None and self._own_goal is None):
            scored, own = score_towards_own_end(scorer, video, on_progress)
            return scored, _Towards(LAST, own)
        chosen = self._goals.read(goal) if goal is not None else self._own_goal
        assert chosen is not None
        if scorer.goal is not chosen:
            scorer.set_goal(chosen)
        return scorer.score(video, on_progress), _Towards(goal or BUNDLE, chosen)

    def _write_overlay(self, path: Path, video: Video, scored: VideoScore, towards: _Towards) -> None:
        targets: list[Frame] = []
        if towards.goal is not None and towards.source == LAST:
            targets = subgoal_pictures(video, towards.goal)
        elif towards.goal is not None and towards.source == BUNDLE:
            targets = read_goal_pictures(self._scorer.bundle.path, towards.goal)
        elif towards.goal is not None:
            targets = goal_pictures(towards.source, towards.goal)
        names = [Status(number).name.lower() for number in scored.status]
        with complete(path) as half:
            write_overlay(half, video, scored.curve, names, targets, video.fps)
