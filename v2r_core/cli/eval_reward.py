"""`v2r eval reward`: how good a reward is, on episodes, beside the controls that it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from v2r_core import DEFAULT_BUNDLE
from v2r_core.evaluate.episodes import EPISODES_FILE, EpisodeSet, read_episodes
from v2r_core.evaluate.reward_html import write_html
from v2r_core.evaluate.reward_plan import SuiteOptions, make_plan
from v2r_core.evaluate.reward_report import ModelReport, RewardReport, report_model, terminal_lines, write_json
from v2r_core.evaluate.reward_suite import read_frames, run_model
from v2r_core.evaluate.scored_models import (
    BundleModel,
    ScoredModel,
    TimeControl,
    novelty_control,
    pixel_control,
    random_control,
)
from v2r_core.video.resize import Frame

IMAGENET, NOVELTY = "ImageNet", "RND"
EXPERTS_FOR_RND = 60
"""Most experts that RND learns from."""


@dataclass(frozen=True)
class EvalReward:
    """Measures rewards on episodes and writes report.json and report.html."""

    model: tuple[Path, ...]
    """Folders of the bundles to judge, one or several."""
    data: Path
    """Folder of episodes: with an episodes.json, as benchmarks/make_episodes.py writes it, or just videos."""
    out: Path = Path("out/reward_report")
    """Folder to write to."""
    goals: Path | None = None
    """Folder of episodes whose experts show the goals, and train the control RND. By default the folder `train`
    beside the data."""
    controls: bool = True
    """Judge pixel distance, a random encoder, the ImageNet encoder, time and RND too."""
    per_group: int = 0
    """Most episodes of each task and behaviour; 0 for all."""
    perturbed: int = 20
    """Episodes that are scored with changed light, camera, order and rate too."""
    seeds: int = 4
    """Sampling seeds of a stochastic reward."""
    tolerance: int = 5
    """Frames that a subgoal boundary may be off."""
    min_interval: int = 6
    """Shortest stage in frames that UVD looks for."""
    seed: int = 0
    """Of what is chosen, of the controls and of the bootstrap."""
    threads: int = 1
    """CPU threads of a bundle's networks."""
    set: tuple[str, ...] = ()
    """Parameters of the judged rewards in place of the bundles', such as `mode=conditional` or `speed=one_call`."""

    def run(self) -> int:
        """Measures, prints a line a metric, writes the report.

        Raises:
            ValueError, OSError: bundle or data cannot be used; the message says which and why.
        """
        if not self.model:
            raise ValueError("no model given; name one bundle or several after --model")
        parameters = dict(map(_parameter, self.set))
        options = SuiteOptions(self.per_group, self.perturbed, self.seeds, self.tolerance, self.min_interval, self.seed)
        data = read_episodes(self.data)
        goals = self._goals()
        plan = make_plan(data, goals, options)
        names = _names(self.model)
        # All are opened before the first is scored: a wrong path is found at once.
        judged: list[ScoredModel] = [
            BundleModel(folder, self.threads, name, parameters) for folder, name in zip(self.model, names, strict=True)
        ]
        controls, left_out = self._controls(goals) if self.controls else ([], {})
        reports: list[ModelReport] = []
        for place, model in enumerate([*judged, *controls]):
            with _ticks(model.name) as tick:
                run = run_model(model, plan, options, tick)
            reports.append(report_model(run, plan, options, control=place >= len(judged)))
        report = RewardReport(self.data, data.about, plan, options, reports, left_out)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "report.json", report)
        write_html(self.out / "report.html", report)
        console = Console()
        console.print(terminal_lines(report, console.width))
        console.print(f"written to {self.out / 'report.json'} and {self.out / 'report.html'}")
        return 0

    def _goals(self) -> EpisodeSet | None:
        if self.goals is not None:
            return read_episodes(self.goals)
        beside = self.data.expanduser().resolve().parent / "train"
        return read_episodes(beside) if (beside / EPISODES_FILE).is_file() else None

    def _controls(self, goals: EpisodeSet | None) -> tuple[list[ScoredModel], dict[str, str]]:
        controls: list[ScoredModel] = [pixel_control(), random_control(self.seed)]
        controls += [BundleModel(DEFAULT_BUNDLE, self.threads, IMAGENET), TimeControl()]
        frames = self._expert_frames(goals)
        if not frames:
            return controls, {NOVELTY: "no folder of goals with labelled successes to learn from"}
        return [*controls, novelty_control(frames, self.seed)], {}

    def _expert_frames(self, goals: EpisodeSet | None) -> list[Frame]:
        experts = [episode for episode in (goals.episodes if goals else ()) if episode.labels.success]
        chosen = np.random.default_rng([self.seed, 3]).permutation(len(experts))[:EXPERTS_FOR_RND]
        return [frame for place in sorted(chosen.tolist()) for frame in read_frames(experts[place])]


def _parameter(word: str) -> tuple[str, float | int | str]:
    """`name=value`, with numbers as numbers."""
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ValueError(f"--set {word}: name=value expected, such as mode=conditional")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _names(folders: tuple[Path, ...]) -> list[str]:
    """The folders' names, as much of their paths as tells them apart."""
    parts = [folder.expanduser().resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"model: {', '.join(map(str, folders))}: a folder is given twice; give each once")


@contextmanager
def _ticks(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(f"{name}: episodes", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
