"""`v2r rl`: a policy from rewards: its eyes, its training, its evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2r_core.rl.drqv2_recipe import PRESETS, DrQv2Recipe
from v2r_core.rl.options import PIXELS, Checkpoint, RlOptions, Task

_DEFAULT_PRESET = "tiny"
VERBS = ("train", "eval", "observe")


@dataclass(frozen=True)
class Train:
    """Trains DrQ-v2 in a simulator, paid by a reward's bundle or by the simulator.

    Attributes:
        task: what it does, what it is paid for, and what it sees.
        out: folder of the run.
        recipe: the preset, with the changes from the command line.
        options: how to train.
    """

    task: Task
    out: Path
    recipe: DrQv2Recipe
    options: RlOptions

    @classmethod
    def parse(cls, words: list[str]) -> Self:
        """Reads the command line. The preset comes first: it decides the defaults.

        Raises:
            ValueError: no such preset.
        """
        chosen = next((following for word, following in itertools.pairwise(words) if word == "--preset"), "")
        chosen = chosen or next((word[9:] for word in words if word.startswith("--preset=")), _DEFAULT_PRESET)
        recipe = DrQv2Recipe.preset(chosen)
        command = dataclasses.make_dataclass(
            "Train",
            [
                ("task", Annotated[Task, tyro.conf.OmitArgPrefixes]),
                ("out", Path),
                ("preset", str, field(default=chosen)),
                ("recipe", Annotated[DrQv2Recipe, tyro.conf.OmitArgPrefixes], field(default=recipe)),
                ("run", Annotated[RlOptions, tyro.conf.OmitArgPrefixes], field(default=RlOptions())),
            ],
        )
        parsed: Any = tyro.cli(
            command,
            args=words,
            prog="v2r rl train",
            description=f"Trains DrQ-v2, starting from the preset {chosen!r} ({', '.join(PRESETS)}).",
        )
        if chosen == "tiny" and parsed.task.observation == PIXELS:
            raise ValueError(
                "the preset tiny sees through a frozen encoder; give --observation BUNDLE (v2r rl observe makes one), "
                "or --preset tiny-pixels"
            )
        return cls(parsed.task, parsed.out, parsed.recipe, parsed.run)

    def run(self) -> int:
        """Trains and reports.

        Raises:
            ValueError, RuntimeError: settings do not fit, or the environment fails.
        """
        from v2r_core.rl.loop import train  # noqa: PLC0415 (torch, which --help does not need)

        run = train(self.recipe, self.task, self.options, self.out)
        Console().print(f"next: v2r rl eval {run}, or v2r export {run} --out POLICY for policy_node")
        return 0


@dataclass(frozen=True)
class Eval:
    """Evaluates the policy of a run without noise, on placements that neither its training nor its evaluations had."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder of a run of `v2r rl train`."""
    episodes: int = 20
    """How many."""
    checkpoint: Checkpoint = "best"
    """`best`, with the most successes in an evaluation of its training, or `newest`."""
    envs: int = 1
    """Environments side by side."""
    out: Path | None = None
    """JSON file to write the numbers to."""
    video: Path | None = None
    """mp4 to write the first episode to."""

    def run(self) -> int:
        """Evaluates and reports.

        Raises:
            ValueError, RuntimeError: not such a run, or the environment fails.
        """
        from v2r_core.rl.runs import evaluate_run  # noqa: PLC0415
        from v2r_core.video.writing import write_video  # noqa: PLC0415

        console = Console()
        with console.status(f"{self.episodes} episodes"):
            evaluation, seconds = evaluate_run(
                self.run_folder, self.episodes, self.envs, self.video is not None, self.checkpoint
            )
        numbers = {key.removeprefix("eval/"): value for key, value in evaluation.numbers().items()}
        table = Table("measure", "value", title=f"{self.run_folder}: {self.episodes} episodes")
        for key, value in numbers.items():
            table.add_row(key.replace("_", " "), f"{value:.4g}")
        console.print(table)
        if self.out is not None:
            shown = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
            self.out.write_text(json.dumps({"episodes": self.episodes, **shown}, indent=2) + "\n")
        if self.video is not None:
            write_video(self.video, evaluation.episodes[0].frames, 1 / seconds)
        return 0


@dataclass(frozen=True)
class Observe:
    """Fits an agent's eyes to your videos: an encoder's map, whitened and shortened, as a bundle for --observation."""

    data: tuple[Path, ...]
    """Videos, or folders of them: demonstrations, and failures too where there are some."""
    out: Path
    """Folder to write the bundle to."""
    encoder: str = "efficientnet_lite0"
    """A convolutional encoder that `v2r models` lists."""
    weights: Path | None = None
    """File with its weights, where it needs one."""
    size: int = 128
    """Side of its input in pixels."""
    stride: int = 16
    """Pixels for a position of the map."""
    dim: int = 128
    """Numbers of the embedding."""
    frames: int = 4000
    """Frames to fit on, evenly spaced over all videos."""
    force: bool = False
    """Overwrite a bundle that is there."""

    def run(self) -> int:
        """Fits, exports and reports.

        Raises:
            ValueError, RuntimeError: no such encoder or map, too few frames, or an export that is not faithful.
        """
        from v2r_core.deploy.bundle import RewardSpec  # noqa: PLC0415
        from v2r_core.deploy.export import export_bundle, export_encoder  # noqa: PLC0415
        from v2r_core.encoders.whitened_map import whitened_map  # noqa: PLC0415
        from v2r_core.encoders.zoo import create_encoder  # noqa: PLC0415

        encoder = create_encoder(self.encoder, self.weights, size=self.size)
        console = Console()
        with console.status("fitting"):
            frames = _spread_frames(self.data, self.frames, encoder.preprocess)
            batches = np.array_split(frames, len(frames) // 64 + 1)
            fitted = whitened_map(encoder, batches, stride=self.stride, dim=self.dim)
            # Agents see through the rounded encoder from the start, so rounding costs them nothing.
            exported = export_encoder(fitted, self.out, half_weights=True, force=self.force)
            bundle = export_bundle(exported, self.out, name=fitted.name, reward=RewardSpec(name="vip"))
        console.print(f"{bundle.path}: {self.dim} numbers a frame, fitted on {len(frames)} frames")
        console.print(f"next: v2r rl train --env metaworld:door-close-v3 --observation {self.out} --out RUN")
        return 0


class Rl:
    """`v2r rl VERB`."""

    @classmethod
    def parse(cls, words: list[str]) -> Train | Eval | Observe:
        """Reads the second verb and what follows it.

        Raises:
            ValueError: no such verb.
        """
        verb, rest = (words[0] if words else "--help"), words[1:]
        if verb in ("-h", "--help"):
            print("usage: v2r rl VERB [OPTIONS]\n")
            print("  observe  fits an agent's eyes to your videos, as a bundle for --observation")
            print("  train    trains a policy in a simulator")
            print("  eval     how often a trained policy succeeds\n")
            print("v2r rl VERB --help lists the options of a verb.")
            sys.exit(0)
        if verb == "train":
            return Train.parse(rest)
        if verb == "eval":
            return tyro.cli(Eval, args=rest, prog="v2r rl eval")
        if verb == "observe":
            return tyro.cli(Observe, args=rest, prog="v2r rl observe")
        raise ValueError(f"no verb {verb!r} of rl; there are {', '.join(VERBS)}")


def _spread_frames(data: tuple[Path, ...], wanted: int, preprocess: Any) -> NDArray[np.uint8]:
    """Frames evenly spaced over all videos together, prepared for the encoder: uint8 (N, S, S, 3)."""
    from v2r_core.video.footage import find_videos  # noqa: PLC0415
    from v2r_core.video.resize import resize_frame  # noqa: PLC0415
    from v2r_core.video.source import open_video  # noqa: PLC0415

    videos = find_videos(data)
    lengths = []
    for path in videos:
        with open_video(path) as video:
            lengths.append(len(video))
    every = max(1, sum(lengths) // wanted)
    frames, seen = [], 0
    for path in videos:
        with open_video(path) as video:
            for frame in video:
                if seen % every == 0:
                    frames.append(resize_frame(frame, preprocess))
                seen += 1
    return np.stack(frames)
