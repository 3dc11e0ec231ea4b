"""`v2r decompose`: where the subgoals of a demonstration are (UVD)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import v2r_core
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, flat
from v2r_core.plot import draw_subgoals
from v2r_core.rewards.uvd import decompose
from v2r_core.video.source import open_video


@dataclass(frozen=True)
class Decompose:
    """Splits a demonstration into subgoals and shows them: subgoals.png, subgoals.json."""

    video: Annotated[str, tyro.conf.Positional]
    """Video file, folder of images, or bag with a topic (`run1:/camera/image`)."""
    out: Path = Path("subgoals")
    """Folder to write to."""
    model: Path = v2r_core.DEFAULT_BUNDLE
    """Bundle whose encoder embeds the frames."""
    min_interval: int | None = None
    """Shortest stage in frames; by default 18 as in the released code, or 15 with `--compat paper`. Made for 20
    to 30 frames a second."""
    gamma: float = 0.08
    """Inverse squared width of the smoothing kernel in frames^-2; 0.08 is a standard deviation of 2.5 frames."""
    compat: Literal["official", "paper"] = "official"
    """The released code, or the project page, which checks the new stage only."""
    threads: int = 0
    """CPU threads of the encoder; 0 takes all cores."""

    def run(self) -> int:
        """Embeds, splits, draws and reports.

        Raises:
            ValueError, OSError: video or model cannot be used; the message says which and why.
        """
        with open_video(self.video) as video:
            scorer = Scorer(load_bundle(self.model), "vip", threads=self.threads)
            found = decompose(
                flat(scorer.embed(video)),
                min_interval=self.min_interval,
                gamma=self.gamma,
                compat=self.compat,
                keep_curves=True,
            )
            stamps = np.asarray(video.stamps, np.float64)
            self.out.mkdir(parents=True, exist_ok=True)
            title = f"{video.name}  ·  subgoals by {scorer.bundle.manifest.encoder.name}"
            draw_subgoals(self.out / "subgoals.png", video.__getitem__, stamps, found, title)
        seconds = (stamps[found.indices] - stamps[0]).round(6).tolist()
        report = {"video": self.video, "frames": len(stamps), "subgoals": found.indices.tolist(), "seconds": seconds}
        (self.out / "subgoals.json").write_text(json.dumps(report, indent=2) + "\n")
        table = Table("subgoal", "frame", "s", title=f"{self.video}: {len(stamps)} frames")
        for number, (index, second) in enumerate(zip(found.indices.tolist(), seconds, strict=True), 1):
            table.add_row(str(number), str(index), f"{second:.2f}")
        Console().print(table, f"written to {self.out}")
        return 0
