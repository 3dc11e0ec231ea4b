"""Where the reference numbers come from: `V2R_PARITY_DIR`, or the copies in `data/`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.npyio import NpzFile

DEFAULT_FOLDER = Path(__file__).parent / "data"
SUBFOLDERS = ("reward", "ssl", ".")


@pytest.fixture(scope="session")
def parity_file() -> Callable[[str], NpzFile]:
    """Opens a file of reference numbers by its name, e.g. `parity_file("vip.npz")["salt"]`."""
    opened: dict[str, NpzFile] = {}

    def load(name: str) -> NpzFile:
        if name not in opened:
            folder = Path(os.environ.get("V2R_PARITY_DIR") or DEFAULT_FOLDER)
            candidates = [folder / sub / name for sub in SUBFOLDERS]
            found = next((path for path in candidates if path.is_file()), None)
            if found is None:
                tried = ", ".join(str(path) for path in candidates)
                pytest.fail(f"no reference file {name!r} (tried {tried}); point V2R_PARITY_DIR at the parity kit")
            opened[name] = np.load(found, allow_pickle=False)
        return opened[name]

    return load
