"""`v2r goal`: a goal as a file, calibrated on more than one execution of the task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.goals import GOAL_SUFFIX, read_goal, with_executions
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.executions import MARGIN
from v2r_core.video.footage import find_videos


@dataclass(frozen=True)
class Goal:
    """Makes a goal out of a demonstration and saves it, for `reward_node`, `v2r score` and `v2r rl train`.

    Frames that are as far from the demonstration as other executions of the task are then not out of distribution.
    """

    demonstration: Annotated[str, tyro.conf.Positional]
    """Video of the task; its end is the goal, and progress is calibrated on it."""
    out: Path
    """File to write, *.safetensors."""
    model: Path = DEFAULT_BUNDLE
    """Folder of the bundle that will use the goal."""
    reward: Literal["vip", "uvd"] | None = None
    """uvd also splits the demonstration into subgoals. By default the reward of the model."""
    executions: tuple[Path, ...] = ()
    """Videos of the task done again, say with objects elsewhere, and folders of them."""
    margin: float = MARGIN
    """How much farther from the demonstration than the farthest of these a frame may be. Policies do a task their own
    way: give them more room, or give videos of theirs."""
    threads: int = 0
    """CPU threads of the encoder; 0 takes all cores."""

    def run(self) -> int:
        """Makes the goal, writes it and reports.

        Raises:
            ValueError, OSError: a video or the model cannot be used, or the file has another ending.
        """
        if self.out.suffix.lower() != GOAL_SUFFIX:
            raise ValueError(f"{self.out}: a goal is a {GOAL_SUFFIX} file; give the name that ending")
        scorer = Scorer(load_bundle(self.model), self.reward, threads=self.threads)
        console = Console()
        videos = find_videos(self.executions) if self.executions else []
        with console.status(f"embedding {1 + len(videos)} videos"):
            alone = read_goal(scorer, self.demonstration)
            goal = with_executions(scorer, alone, videos, self.margin)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        goal.save(self.out)
        wider = goal.uncertainty_threshold / alone.uncertainty_threshold
        console.print(
            f"{self.out}: {len(goal.milestones)} subgoals, {len(goal.demonstration)} frames of the demonstration; "
            f"{len(videos)} executions make the threshold {wider:.2f} times as wide"
        )
        return 0
