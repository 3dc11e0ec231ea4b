"""Which processor numbers are from, and what it computes on: batches of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from v2r_core.methods import load_method
from v2r_core.methods.method import Recipe


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def noise_batch(recipe: Recipe, name: str, device: str) -> dict[str, object]:
    """Views of noise, and the masks that the method's own sampler draws."""
    spec, count = load_method(name).data(recipe), recipe.batch_size
    frames = () if spec.frames == 1 else (spec.frames,)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(count, 3, *frames, view.size, view.size, generator=generator) for view in spec.views]
    batch: dict[str, object] = {"views": [view.to(device) for view in views], "names": ["noise"] * count}
    if spec.masks is not None:
        batch |= spec.masks(count, 1, generator)
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
