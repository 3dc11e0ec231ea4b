"""Where the reference numbers come from: `V2R_PARITY_DIR`, or the copies in `data/`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.npyio import NpzFile

DEFAULT_FOLDER = Path(__file__).parent / "data"
SUBFOLDERS = ("reward", "ssl", ".")


def find_file(name: str) -> Path:
    """Path of a file of the kit; the test fails if there is none."""
    folder = Path(os.environ.get("V2R_PARITY_DIR") or DEFAULT_FOLDER)
    candidates = [folder / sub / name for sub in SUBFOLDERS]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        tried = ", ".join(str(path) for path in candidates)
        pytest.fail(f"no reference file {name!r} (tried {tried}); point V2R_PARITY_DIR at the parity kit")
    return found


@pytest.fixture(scope="session")
def parity_file() -> Callable[[str], NpzFile]:
    """Opens a file of reference numbers by its name, e.g. `parity_file("vip.npz")["salt"]`."""
    opened: dict[str, NpzFile] = {}

    def load(name: str) -> NpzFile:
        if name not in opened:
            opened[name] = np.load(find_file(name), allow_pickle=False)
        return opened[name]

    return load


@pytest.fixture(scope="session")
def checkpoint_keys() -> dict[str, Any]:
    """Keys and shapes of released checkpoints, e.g. `checkpoint_keys["moco_v2_resnet50"]["keys"]`."""
    content: dict[str, Any] = json.loads(find_file("checkpoint_keys.json").read_text())
    return content
