"""`v2r goal`: a goal as a file, calibrated on more than one execution of the task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import Bundle, load_bundle
from v2r_core.deploy.goals import GOAL_SUFFIX, read_goal, with_executions
from v2r_core.deploy.own_goal import embed_goal
from v2r_core.deploy.stream import Scorer
from v2r_core.label.overlay_video import goal_pictures
from v2r_core.overlay import small_target
from v2r_core.rewards.executions import MARGIN
from v2r_core.video.footage import find_videos


@dataclass(frozen=True)
class Goal:
    """Makes a goal out of a demonstration and saves it, for `reward_node`, `v2r score` and `v2r rl train`.

    Frames that are as far from the demonstration as other executions of the task are then not out of distribution.
    """

    demonstration: Annotated[str, tyro.conf.Positional]
    """Video of the task; its end is the goal, and progress is calibrated on it."""
    out: Path | None = None
    """File to write, *.safetensors."""
    into: Path | None = None
    """Folder of a bundle that the goal becomes part of, instead of a file: its own goal, which is in force where no
    other is set, with pictures of the subgoals for the overlay."""
    model: Path = DEFAULT_BUNDLE
    """Folder of the bundle that will use the goal; with --into it is that one."""
    reward: Literal["vip", "uvd"] | None = None
    """uvd also splits the demonstration into subgoals. By default the reward of the model."""
    executions: tuple[Path, ...] = ()
    """Videos of the task done again, say with objects elsewhere, and folders of them."""
    margin: float = MARGIN
    """How much farther from the demonstration than the farthest of these a frame may be. Policies do a task their own
    way: give them more room, or give videos of theirs."""
    threads: int = 0
    """CPU threads of the encoder; 0 takes all cores."""
    force: bool = False
    """With --into: replace the goal that the bundle has."""

    def run(self) -> int:
        """Makes the goal, writes it and reports.

        Raises:
            ValueError, OSError: a video or the model cannot be used, the file has another ending, or the bundle has a
                goal already.
        """
        bundle = self._bundle()
        scorer = Scorer(bundle, self.reward, threads=self.threads)
        console = Console()
        videos = find_videos(self.executions) if self.executions else []
        with console.status(f"embedding {1 + len(videos)} videos"):
            alone = read_goal(scorer, self.demonstration)
            goal = with_executions(scorer, alone, videos, self.margin) if videos else alone
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            goal.save(self.out)
        else:
            pictures = [small_target(picture) for picture in goal_pictures(self.demonstration, goal)]
            embed_goal(bundle, goal, pictures, self.force)
        wider = ""
        if videos:
            times = goal.uncertainty_threshold / alone.uncertainty_threshold
            wider = f"; {len(videos)} executions make the threshold {times:.2f} times as wide"
        console.print(
            f"{self.out or self.into}: {len(goal.milestones)} subgoals, {len(goal.demonstration)} frames of the "
            f"demonstration{wider}"
        )
        return 0

    def _bundle(self) -> Bundle:
        if (self.out is None) == (self.into is None):
            raise ValueError(f"give either --out FILE{GOAL_SUFFIX} or --into BUNDLE")
        if self.out is not None:
            if self.out.suffix.lower() != GOAL_SUFFIX:
                raise ValueError(f"{self.out}: a goal is a {GOAL_SUFFIX} file; give the name that ending")
            return load_bundle(self.model)
        assert self.into is not None
        if self.model not in (DEFAULT_BUNDLE, self.into):
            raise ValueError(
                f"--model {self.model}: a goal in {self.into} is made with that bundle; leave --model away"
            )
        bundle = load_bundle(self.into)
        if bundle.manifest.goal and not self.force:
            raise FileExistsError(f"{self.into} has the goal {bundle.manifest.goal} already; --force replaces it")
        return bundle
