"""What the frozen part of a network makes of every frame, computed once, before training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from v2r_core.methods.method import FrozenPart
from v2r_core.video.clips import ClipDataset
from v2r_core.video.footage import Reader
from v2r_core.video.frame_cache import source_state
from v2r_core.video.resize import Frame, resize_frame
from v2r_core.video.video import VideoError

BATCH = 32
_TENSOR = "features"


def frame_features(
    frozen: FrozenPart, dataset: ClipDataset, device: torch.device, cache: Path | None = None
) -> list[Tensor]:
    """Applies the frozen part to all frames of all sources.

    A frame that cannot be read gets the features of the last good one before it: a sample of frames of a whole video
    has no use for holes.

    Args:
        frozen: the part.
        dataset: whose sources are read.
        device: where the part is.
        cache: folder for the features; None keeps them in memory only.

    Returns:
        One tensor a source, (frames, ...), on the CPU.

    Raises:
        VideoError: no frame of a video can be read.
        OSError: the cache cannot be written to.
    """
    reader = Reader(dataset.sources, dataset.cache)
    tables = []
    for number in track(range(len(dataset.sources)), description=f"features: {frozen.name[:32]}", transient=True):
        source = dataset.sources[number]
        kept = None if cache is None else cache / "features" / f"{_key(frozen, source.path, source.frames)}.safetensors"
        table = _load(kept)
        if table is None:
            table = _compute(frozen, reader, number, source.frames, device)
            _save(table, kept)
        tables.append(table)
    return tables


@torch.inference_mode()
def _compute(frozen: FrozenPart, reader: Reader, source: int, count: int, device: torch.device) -> Tensor:
    rows = []
    for first in range(0, count, BATCH):
        frames = [_frame(reader, source, number, frozen) for number in range(first, min(first + BATCH, count))]
        rows.append(frozen.apply(torch.from_numpy(np.stack(frames)).to(device)).cpu())
    # A copy outside of inference mode, which autograd could not use.
    return torch.cat(rows).clone()


def _frame(reader: Reader, source: int, number: int, frozen: FrozenPart) -> Frame:
    for candidate in range(number, -1, -1):
        try:
            return resize_frame(reader.frame(source, candidate), frozen.preprocess)
        except VideoError as error:
            problem = error
    raise VideoError(f"{reader.sources[source].path}: no readable frame up to {number} ({problem}); remove the video")


def _key(frozen: FrozenPart, path: str, frames: int) -> str:
    text = json.dumps([frozen.name, vars(frozen.preprocess), path, frames, source_state(path)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _load(kept: Path | None) -> Tensor | None:
    if kept is None or not kept.is_file():
        return None
    try:
        return load_file(kept)[_TENSOR]
    except (OSError, SafetensorError, KeyError):
        return None


def _save(table: Tensor, kept: Path | None) -> None:
    if kept is None:
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial")
    save_file({_TENSOR: table.contiguous()}, partial)
    partial.replace(kept)
