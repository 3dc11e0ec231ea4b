"""The two rings of rows of a replay store: written with pwrite, read through maps of the files."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.replay_files import FRAMES, STEPS, Layout, open_file, write_at


class Rows:
    """frames.bin and steps.bin. Rows are counted on for ever; the place of one is its remainder by the capacity.

    Args:
        folder: of the store.
        layout: of a row.
        capacity: rows of the rings.
        flags: for `os.open`.

    Raises:
        ReplayError: a file is not there, and `flags` do not make it.
    """

    def __init__(self, folder: Path, layout: Layout, capacity: int, flags: int) -> None:
        self.layout, self.capacity = layout, capacity
        self._sizes = {STEPS: layout.step_dtype.itemsize, FRAMES: layout.frame_bytes}
        self._files: dict[str, int] = {}
        self._maps: dict[str, NDArray[Any]] = {}
        for name in self._sizes:
            self._files[name] = open_file(folder / name, flags)

    def held(self) -> dict[str, int]:
        """How many whole rows each file has, by its name."""
        return {name: os.fstat(self._files[name]).st_size // size for name, size in self._sizes.items()}

    def lacking(self, first: int, count: int) -> str:
        """Which file is too short for `count` rows from `first` on, in words; empty if none is."""
        last = min(first % self.capacity + count, self.capacity) - 1
        short = (
            f"{name} ends before row {rows}, row {last} expected" for name, rows in self.held().items() if last >= rows
        )
        return next(short, "")

    def steps(self, rows: NDArray[np.int64]) -> NDArray[np.void]:
        """Records with `action`, `reward` and `discount`, of the shape of `rows`; only of rows that were mapped."""
        found: NDArray[np.void] = self._maps[STEPS][rows % self.capacity]
        return found

    def frames(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (*rows.shape, *frame_shape); only of rows that were mapped."""
        frames = self._maps[FRAMES]
        found = np.empty((*rows.shape, frames.shape[1]), dtype=frames.dtype)
        # With "raise", take would fill a buffer and copy it.
        np.take(frames, rows % self.capacity, axis=0, out=found, mode="clip")
        return found.reshape(*rows.shape, *self.layout.frame_shape)

    def write(self, row: int, action: NDArray[Any], reward: float, discount: float, frame: NDArray[Any]) -> None:
        """Writes a row over the one that has its place.

        Raises:
            OSError: it was not written, or not all of it.
        """
        record = np.array((action, reward, discount), dtype=self.layout.step_dtype)
        place = row % self.capacity
        write_at(self._files[FRAMES], np.ascontiguousarray(frame).tobytes(), place * self.layout.frame_bytes)
        write_at(self._files[STEPS], record.tobytes(), place * record.dtype.itemsize)

    def sync(self) -> None:
        """Returns once all is on the disk.

        Raises:
            OSError: it is not.
        """
        for file in self._files.values():
            os.fsync(file)

    def cut(self, rows: int) -> None:
        """Takes away the rows from this number on; in a ring that has gone round there are older ones, which stay."""
        if rows > self.capacity:
            return
        for name, size in self._sizes.items():
            os.ftruncate(self._files[name], min(rows * size, os.fstat(self._files[name]).st_size))

    def map(self) -> None:
        """Makes all rows that the files have by now readable."""
        for name, held in self.held().items():
            if held > len(self._maps.get(name, ())):
                content = mmap.mmap(self._files[name], held * self._sizes[name], access=mmap.ACCESS_READ)
                dtype = self.layout.step_dtype if name == STEPS else np.dtype(self.layout.frame_dtype)
                flat = np.frombuffer(content, dtype=dtype)
                self._maps[name] = flat if name == STEPS else flat.reshape(held, -1)

    def close(self) -> None:
        """Closes the files. May be called again."""
        self._maps.clear()
        for name in list(self._files):
            os.close(self._files.pop(name))
