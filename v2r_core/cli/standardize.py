"""`v2r standardize`: what a step reward is worth on expert videos, written into its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.card import CARD
from v2r_core.deploy.standardize import write_standard
from v2r_core.deploy.stream import Scorer
from v2r_core.video.footage import find_videos
from v2r_core.video.source import open_video

FEW = 100
"""Rewards below which the numbers are not to be relied on."""


@dataclass(frozen=True)
class Standardize:
    """Measures mean and standard deviation of a bundle's step reward on expert videos and writes them into the bundle.

    From then on its reward is (raw - mean) / std, as Diffusion Reward trains its policies (section 4.2). Numbers of an
    agent's own videos would move with the agent: use the experts'.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a bundle with a step reward: viper or diffusion."""
    data: tuple[Path, ...]
    """Videos of experts, and folders of them."""
    threads: int = 0
    """CPU threads; 0 takes all cores."""

    def run(self) -> int:
        """Scores all videos, writes the bundle again, reports.

        Raises:
            ValueError, OSError: no step reward in the bundle, or no video that is long enough.
        """
        bundle = load_bundle(self.bundle)
        spec = bundle.manifest.reward
        if spec.kind != "step_reward":
            raise ValueError(f"{self.bundle}: reward {spec.name!r} is a value; only step rewards are standardized")
        # The raw reward knows nothing of an earlier standardisation.
        scorer = Scorer(bundle, threads=self.threads)
        rewards: list[NDArray[np.float64]] = []
        skipped = 0
        for path in track(find_videos(self.data), description="scoring", transient=True):
            with open_video(path) as video:
                raw = scorer.score(video).curve.raw_reward
            finite = raw[np.isfinite(raw)]
            skipped += not len(finite)
            rewards.append(finite)
        every = np.concatenate(rewards)
        if len(every) < 2:
            raise ValueError(
                f"{len(every)} rewards in {len(rewards)} videos: none is as long as the window of "
                f"{scorer.reward.history} frames; give longer ones"
            )
        mean, std = float(every.mean()), float(every.std())
        write_standard(bundle, mean, std, len(every))
        console = Console()
        console.print(f"{self.bundle}: mean {mean:.6g}, std {std:.6g}, of {len(every)} rewards; see {CARD}")
        if skipped:
            console.print(f"{skipped} of {len(rewards)} videos are too short for a window of frames")
        if len(every) < FEW:
            console.print(f"fewer than {FEW} rewards: give more videos")
        return 0
