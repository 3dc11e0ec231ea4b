"""Which processor numbers are from."""

from __future__ import annotations

import torch


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)
