"""The parity kit stores no weights: each is drawn from the CRC-32 of its key. This is that rule."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def generate_weights(
    shapes: Mapping[str, Sequence[int]], salt: int, style: Literal["torch", "flax"] = "torch"
) -> dict[str, NDArray[Any]]:
    """Draws every parameter of a network.

    Args:
        shapes: rule key to shape, e.g. `{name: tensor.shape for name, tensor in module.state_dict().items()}`.
            Where the kit says that rule keys have a prefix, the caller adds it.
        salt: the npz file's `salt`.
        style: which naming the scale of a parameter is read from.

    Returns:
        rule key to array, float32, but int64 zeros for `num_batches_tracked`.
    """
    draw = _draw_torch if style == "torch" else _draw_flax
    return {key: draw(key, tuple(int(n) for n in shape), int(salt)) for key, shape in shapes.items()}


def _normal(key: str, shape: tuple[int, ...], salt: int) -> NDArray[np.float64]:
    crc = zlib.crc32(key.encode("ascii"))
    return np.asarray(np.random.default_rng([salt, crc]).standard_normal(shape))


def _draw_torch(key: str, shape: tuple[int, ...], salt: int) -> NDArray[Any]:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    z = _normal(key, shape, salt)
    if key.endswith("running_var"):
        z = np.abs(z) + 0.5
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif len(shape) >= 2:
        z = z / np.sqrt(math.prod(shape[1:]))
    elif key.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def _draw_flax(key: str, shape: tuple[int, ...], salt: int) -> NDArray[Any]:
    z = _normal(key, shape, salt)
    last = key.rsplit("/", 1)[-1]
    if last == "kernel":
        z = z / np.sqrt(math.prod(shape[:-1]))
    elif last == "scale":
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)
