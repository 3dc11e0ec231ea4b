"""Labels whole videos, one after the other: what one worker does, whether it is the only one or one of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.own_end import score_towards_own_end
from v2r_core.deploy.stream import Scorer, VideoScore
from v2r_core.label.goals import BUNDLE, LAST, GoalReader
from v2r_core.label.table import LabelOrigin, Labels
from v2r_core.rewards.goal import load_goal
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
    """

    source: str
    name: str
    goal: str | None = None


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
        own = bundle.manifest.goal if self._scorer.goal is not None else None
        self._own_goal = load_goal(bundle.path / own) if own else None

    def label(self, task: VideoTask, on_progress: Callable[[int, int], None] | None = None) -> Labels:
        """Labels one video as one episode.

        Args:
            task: what and towards which goal.
            on_progress: called with (frames done, frames in all).

        Raises:
            FileNotFoundError: no such video or goal.
            ValueError: it is none, it is damaged, or the reward takes no goal.
        """
        with open_video(task.source) as video:
            scored, goal_source = self._score(video, task.goal, on_progress)
        scorer, bundle = self._scorer, self._scorer.bundle
        origin = LabelOrigin(
            source=task.source,
            name=task.name,
            reward=scorer.reward_name,
            kind=scorer.reward.kind,
            goal=scorer.goal.name if scorer.goal and goal_source else "",
            goal_source=goal_source,
            model=bundle.manifest.name,
            model_sha256=bundle.sha256,
        )
        return Labels(origin, scored.stamps, scored.curve, scored.status)

    def _score(
        self, video: Video, goal: str | None, on_progress: Callable[[int, int], None] | None
    ) -> tuple[VideoScore, str]:
        """The score, and where its goal came from."""
        scorer = self._scorer
        if not scorer.reward.needs_goal:
            if goal is not None:
                raise ValueError(
                    f"goal {goal}: the reward {scorer.reward_name!r} compares with no goal; leave the goal away, or "
                    "take the reward vip"
                )
            return scorer.score(video, on_progress), ""
        if goal is None and self._own_goal is not None:
            scorer.set_goal(self._own_goal)
            return scorer.score(video, on_progress), BUNDLE
        if goal is None or goal == LAST:
            return score_towards_own_end(scorer, video, on_progress)[0], LAST
        scorer.set_goal(self._goals.read(goal))
        return scorer.score(video, on_progress), goal
