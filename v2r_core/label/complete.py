"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Gives another name next to `path` to write to, which becomes `path` at the end, and is on the disk then.

    Args:
        path: the final name; its folder is made, what has the name is replaced.

    Raises:
        OSError: it cannot be written; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        yield half
        # A crash of the machine must not leave an empty file under the final name.
        handle = os.open(half, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def remove_halves(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left anywhere in a folder."""
    for half in folder.rglob(f".*{_SUFFIX}"):
        half.unlink(missing_ok=True)
