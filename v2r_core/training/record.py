"""A run's record, `run.json`: what was trained on what, so that it can be repeated, resumed and loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.methods.method import Horizon, Recipe
from v2r_core.methods.runs import RUN, read_run
from v2r_core.training.checkpoint import plain, write_json
from v2r_core.video.clips import ClipDataset

Settings = TypeVar("Settings")

_COMPARED = ("recipe", "horizon", "task", "options")
"""Parts of a record that a resumed run must share; a kind of run has those that it needs."""
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


def new_record(method: str, recipe: Recipe, horizon: Horizon, dataset: ClipDataset) -> dict[str, Any]:
    """What is to be trained, as JSON will have it."""
    record = {
        "method": method,
        "recipe": dataclasses.asdict(recipe),
        "horizon": dataclasses.asdict(horizon),
        "sources": [source.path for source in dataset.sources],
        "skipped": [list(entry) for entry in dataset.skipped],
        "fps": _median_rate(dataset),
        "software": {package: version(package) for package in _PACKAGES},
    }
    result: dict[str, Any] = plain(record)
    return result


def with_whole_paths(settings: Settings, names: Sequence[str], marker: str) -> Settings:
    """Settings with absolute paths, so that a run can be used from any folder.

    Args:
        settings: a dataclass.
        names: fields that may name a file or a folder; what is neither stays as it is.
        marker: file that a folder has which is meant.
    """
    found = {name: Path(getattr(settings, name)).expanduser() for name in names}
    there = {name: path for name, path in found.items() if path.is_file() or (path / marker).is_file()}
    whole = {name: str(path.absolute()) for name, path in there.items()}
    return cast(Settings, dataclasses.replace(cast(Any, settings), **whole))


def _median_rate(dataset: ClipDataset) -> float | None:
    """Frames a second of the videos, their median; None where none of them has a rate."""
    rates = [source.fps for source in dataset.sources if math.isfinite(source.fps)]
    return float(np.median(rates)) if rates else None


def check_claim(run: Path, record: dict[str, Any], resume: bool) -> None:
    """Looks whether `claim` would take a folder for a run; writes nothing.

    Raises:
        ValueError: the folder holds a run, and it is not to be resumed.
        CheckpointError: nothing to resume, or a run of something else; both values are named.
    """
    there = (run / RUN).is_file()
    if there and not resume:
        raise ValueError(f"{run}: there is a run already; go on with --resume, or give another folder")
    if resume and not there:
        raise CheckpointError(f"{run}: nothing to resume, there is no {RUN}; leave --resume away")
    if resume:
        _compare(read_run(run), record, run)


def claim(run: Path, record: dict[str, Any], resume: bool) -> None:
    """Takes a folder for a run: writes the record, or when resuming compares it with the one that is there.

    Raises:
        ValueError, CheckpointError: see `check_claim`.
    """
    check_claim(run, record, resume)
    if resume:
        return
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / RUN, record)


def _compare(old: dict[str, Any], new: dict[str, Any], run: Path) -> None:
    if old["method"] != new["method"]:
        raise CheckpointError(f"{run}: holds a run of {old['method']}, {new['method']} asked for; give another folder")
    for part in _COMPARED:
        before, now = old.get(part, {}), new.get(part, {})
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                raise CheckpointError(
                    f"{run}: {part}.{key} was {before.get(key)}, now it is {now.get(key)}; "
                    "a run is resumed with what it was started with"
                )
