"""`v2r train`: a representation from your own videos."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from rich.console import Console
from rich.table import Table

from v2r_core.methods import METHODS, load_method
from v2r_core.methods.method import Method, Recipe
from v2r_core.training.log import read_metrics
from v2r_core.training.loop import train
from v2r_core.training.options import RunOptions

_DEFAULT_PRESET = "paper"


@dataclass(frozen=True)
class Train:
    """Trains a method on videos and writes a run: checkpoints, metrics.jsonl, tensorboard.

    Attributes:
        method: what to train with.
        data: video files, folders of images, bags, LeRobotDatasets (`pick`, or `pick#3` for an episode), and folders of
            all these.
        out: folder of the run.
        recipe: the preset, with the changes from the command line.
        options: how to train.
    """

    method: str
    data: tuple[Path, ...]
    out: Path
    recipe: Recipe
    options: RunOptions

    @classmethod
    def parse(cls, words: list[str]) -> Self:
        """Reads the command line. Method and preset come first: they decide which options there are.

        Raises:
            ValueError: no such method or preset.
        """
        name = words[0] if words else "--help"
        if name.startswith("-"):
            _print_methods(Console())
            sys.exit(0 if name in ("-h", "--help") else 2)
        presets = load_method(name).recipe_type.presets()
        chosen = _preset(words)
        if chosen not in presets:
            raise ValueError(f"{name} has no preset {chosen!r}; there are {', '.join(presets)}")
        recipe = presets[chosen]
        command = dataclasses.make_dataclass(
            "Train",
            [
                ("data", tuple[Path, ...]),
                ("out", Path),
                ("preset", str, dataclasses.field(default=chosen)),
                ("recipe", Annotated[type(recipe), tyro.conf.OmitArgPrefixes], dataclasses.field(default=recipe)),
                ("run", Annotated[RunOptions, tyro.conf.OmitArgPrefixes], dataclasses.field(default=RunOptions())),
            ],
        )
        parsed: Any = tyro.cli(
            command,
            args=words[1:],
            prog=f"v2r train {name}",
            description=f"Trains {name} on videos, starting from the preset {chosen!r} ({', '.join(presets)}).",
        )
        return cls(name, parsed.data, parsed.out, parsed.recipe, parsed.run)

    def run(self) -> int:
        """Trains and reports.

        Raises:
            ValueError, RuntimeError: settings, data or folder do not fit, or the loss is not finite.
        """
        run = train(self.method, self.recipe, self.data, self.out, self.options)
        lines = read_metrics(run)
        Console().print(f"{run}: step {lines[-1]['step']:.0f}, loss {lines[-1]['loss']:.4g}")
        learned = load_method(self.method).reward_export is not Method.reward_export
        judge = "then v2r eval reward --model BUNDLE" if learned else f"or v2r eval probe --model {run}"
        Console().print(f"next: v2r export {run} --out BUNDLE, {judge} --data ...")
        return 0


def _preset(words: list[str]) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--preset":
            return following
        if word.startswith("--preset="):
            return word.partition("=")[2]
    return _DEFAULT_PRESET


def _print_methods(console: Console) -> None:
    table = Table("method", "presets", title="v2r train METHOD --data PATH... --preset PRESET --out RUN")
    for name in METHODS:
        table.add_row(name, ", ".join(load_method(name).recipe_type.presets()))
    console.print(table)
    console.print("v2r train METHOD --help lists every setting of a method.")
