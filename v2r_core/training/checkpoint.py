"""Checkpoints of a run: safetensors and JSON, complete or not there at all.

    RUN/run.json                      method, recipe, horizon, data, software
    RUN/checkpoints/step-00001000/    method.safetensors     networks, averages, queues, centres
                                      optimizer.safetensors  and its numbers in state.json
                                      rng-<rank>.safetensors random generators of every process
                                      state.json             step, loss scaler

A folder is written under another name and renamed when every file is on disk. The step is also the position in the
data, since the order of the examples follows from seed and step.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from v2r_core.encoders.checkpoints import CheckpointError, file_sha256, load_strict
from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Method, RewardExport
from v2r_core.methods.runs import method_of_run, read_run, tuples

CHECKPOINTS = "checkpoints"
METHOD = "method.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_PREFIX = "step-"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under another name and renames it: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def plain(content: Any) -> Any:
    """What JSON makes of a value: tuples become lists."""
    return json.loads(json.dumps(content))


def list_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = (Path(run).expanduser() / CHECKPOINTS).glob(f"{_PREFIX}*")
    return sorted((folder for folder in folders if folder.name.removeprefix(_PREFIX).isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps done at a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def latest_checkpoint(run: str | Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no complete checkpoint in {CHECKPOINTS}/; train first")
    return found[-1]


def save_checkpoint(
    run: Path, step: int, method: Method, optimizer: torch.optim.Optimizer, scaler: Mapping[str, Any], keep: int
) -> Path:
    """Writes what this process has to write, on a single process; see `write_rng` for the others.

    Args:
        run: the run's folder.
        step: optimizer steps done.
        method: whose state is kept.
        optimizer: whose state is kept.
        scaler: state of the loss scaler; empty without one.
        keep: complete checkpoints to leave; older ones are removed after the new one is complete.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full or not writable; nothing of the new checkpoint is left, the older ones are untouched.
    """
    target = run / CHECKPOINTS / f"{_PREFIX}{step:08d}"
    partial = partial_folder(run, step)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        tensors, numbers = _flatten(optimizer.state_dict())
        save_tensors(method.state_dict(), partial / METHOD)
        save_tensors(tensors, partial / OPTIMIZER)
        write_json(partial / STATE, {"step": step, "optimizer": numbers, "scaler": dict(scaler)})
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        drop_partial(run, step)
        raise OSError(f"{target}: not saved ({error}); free some space, the older checkpoints are untouched") from error
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return target


def partial_folder(run: Path, step: int) -> Path:
    """Where a checkpoint is put together."""
    return run / CHECKPOINTS / f"partial-{step:08d}"


def drop_partial(run: Path, step: int) -> None:
    """Removes what there is of a checkpoint that cannot be completed."""
    shutil.rmtree(partial_folder(run, step), ignore_errors=True)


def write_rng(run: Path, step: int, rank: int) -> None:
    """Writes this process's random generators into the checkpoint that is being put together."""
    folder = partial_folder(run, step)
    folder.mkdir(parents=True, exist_ok=True)
    kind, numpy_state, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    version, words, next_gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_state.astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    for number, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
        tensors[f"cuda.{number}"] = state
    numbers = {"numpy": [kind, position, has_gauss, gauss], "python": [version, next_gauss]}
    save_tensors(tensors, folder / f"rng-{rank}.safetensors", {"numbers": json.dumps(numbers)})


def restore_rng(checkpoint: Path, rank: int) -> None:
    """Sets this process's random generators as they were; a process that was not there then keeps its own."""
    file = checkpoint / f"rng-{rank}.safetensors"
    if not file.is_file():
        return
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        numbers = json.loads(opened.metadata()["numbers"])
    torch.set_rng_state(tensors["torch"])
    kind, position, has_gauss, gauss = numbers["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, next_gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), next_gauss))
    if torch.cuda.is_available():
        saved = [tensors[key] for key in sorted(tensors) if key.startswith("cuda.")]
        if len(saved) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved)


def restore(checkpoint: Path, method: Method, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Puts a checkpoint's state into a method and, if given, its optimizer.

    Returns:
        What `state.json` says: `step`, `scaler`.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit; the keys are named.
    """
    load_strict(method, _load(checkpoint / METHOD), str(checkpoint / METHOD))
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    if optimizer is not None:
        tensors = _load(checkpoint / OPTIMIZER)
        try:
            optimizer.load_state_dict(_unflatten(tensors, state["optimizer"], optimizer.state_dict()))
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{checkpoint}: optimizer state does not fit ({error}); other parameters?") from error
    return state


def load_run_encoder(run: str | Path) -> Encoder:
    """The encoder that a run has learned so far; see `load_run`."""
    return load_run(run)[0]


def load_run(run: str | Path) -> tuple[Encoder, RewardExport | None]:
    """The encoder that a run has learned so far, and its reward, where it has learned one.

    Raises:
        CheckpointError: not a run, no checkpoint, or one that does not fit.
    """
    checkpoint = latest_checkpoint(run)
    record = read_run(run)
    method = method_of_run(run)
    encoder = method.encoder().eval()
    encoder.weights = WeightsInfo(
        source=f"trained with {record['method']}, {step_of(checkpoint)} steps, on {len(record['sources'])} videos",
        license="as the videos that it was trained on",
        sha256=file_sha256(checkpoint / METHOD),
    )
    return encoder, method.reward_export()


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors of any device and layout as safetensors.

    Raises:
        OSError: the disk is full or not writable.
    """
    plain_tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        save_file(plain_tensors, file, metadata)
    except SafetensorError as error:
        raise OSError(f"{file}: not written ({error})") from error


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); resume from an older checkpoint") from error


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    own = [group["params"] for group in fresh["param_groups"]]
    if [group["params"] for group in numbers["groups"]] != own:
        raise ValueError("its parameter groups are others")
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers["scalars"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [
        {key: tuples(value) if key != "params" else value for key, value in group.items()}
        for group in numbers["groups"]
    ]
    return {"state": state, "param_groups": groups}


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those tensors that hold a NaN or an infinity; those of whole numbers cannot."""
    return [name for name, value in tensors if value.is_floating_point() and not bool(value.isfinite().all())]
