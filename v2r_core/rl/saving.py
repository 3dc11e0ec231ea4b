"""Checkpoints of an agent: nested state as safetensors and JSON, complete or not there at all.

    RUN/checkpoints/step-00006000/    state.safetensors   every tensor and array
                                      state.json          the rest, with a mark where a tensor belongs
    RUN/best/checkpoints/step-...     likewise, the agent of the best evaluation so far

The replay is no part of it: it lies beside, and is rewound to the number of episodes that the checkpoint knew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.training.checkpoint import CHECKPOINTS, list_checkpoints, save_tensors, write_json

TENSORS, STATE = "state.safetensors", "state.json"
_TENSOR, _PAIRS = "tensor", "pairs"


def save_state(run: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint.

    Args:
        run: the run's folder.
        step: environment steps done; names the folder.
        state: nested dictionaries, lists and tuples of tensors, arrays, numbers and strings.
        keep: complete checkpoints to leave.

    Raises:
        OSError: the disk is full or not writable; the older checkpoints are untouched.
    """
    target = run / CHECKPOINTS / f"step-{step:08d}"
    partial = target.with_name(f"partial-{step:08d}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        tree = _pack(state, "", tensors)
        save_tensors(tensors, partial / TENSORS)
        write_json(partial / STATE, tree)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{target}: not saved ({error}); free some space, the older checkpoints are untouched") from error
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return target


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_state` was given; arrays come back as tensors, tuples as lists.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        tensors = load_file(checkpoint / TENSORS)
        tree = json.loads((checkpoint / STATE).read_text())
        state: dict[str, Any] = _unpack(tree, tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot be read ({error}); resume from an older checkpoint") from error
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        tensors[name] = torch.as_tensor(value)
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        # As pairs, since an optimizer's keys are numbers, which JSON would make into strings.
        return {_PAIRS: [[key, _pack(entry, f"{name}/{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(entry, f"{name}/{number}", tensors) for number, entry in enumerate(value)]
    return value


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    return {key: _unpack(entry, tensors) for key, entry in tree[_PAIRS]}
