"""The folder in which something is made until it is complete: nothing half is ever found under the final name."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Set
from pathlib import Path
from types import TracebackType
from typing import Self


class PartialFolder:
    """A folder `NAME.partial` next to `NAME`. Only one process at a time has it; it outlives a process that dies.

    Attributes:
        folder: itself.
        journal: file or folder in it that outlives a run that ends early.
        product: folder or file in it that `finish` moves to the final name; not there at the beginning.
    """

    def __init__(self, final: Path, force: bool, sources: Set[Path] = frozenset()) -> None:
        """Only names things.

        Args:
            final: the final name.
            force: replace what has it.
            sources: what must not be replaced.
        """
        self._final = final.absolute()
        self._force = force
        self._sources = sources
        self.folder = self._final.with_name(self._final.name + ".partial")
        self.journal = self.folder / "journal"
        self.product = self.folder / self._final.name
        self._replaced = self.folder / "replaced"
        self._lock = -1

    def __enter__(self) -> Self:
        """Makes the folder, or takes over that of a process that died.

        Raises:
            FileExistsError: the final name is taken, or another process is at work.
            ValueError: the final name is that of a source, or within it.
        """
        final = self._final.resolve()
        for source in (each.resolve() for each in self._sources):
            if final.is_relative_to(source) or source.is_relative_to(final):
                raise ValueError(f"{self._final} and {source} overlap, which has to stay as it is; give another name")
        self._check_free()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FileExistsError(f"another process is writing {self._final}; wait for it") from error
            self._restore()
            self._check_free()
            self._clear()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def finish(self) -> None:
        """Moves the product to the final name and removes the folder."""
        _sync(self.product)
        if self._final.exists():
            self._final.rename(self._replaced)
        self.product.rename(self._final)
        sync_entry(self._final.parent)
        shutil.rmtree(self.folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the journal if the product was not finished, unless nothing is in it yet."""
        try:
            if self.folder.exists():
                self._restore()
                self._clear()
                if not _holds_anything(self.journal):
                    shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            os.close(self._lock)

    def _restore(self) -> None:
        """Puts back what was to be replaced, if it stopped between two renames."""
        if self._replaced.exists() and not self._final.exists():
            self._replaced.rename(self._final)

    def _check_free(self) -> None:
        if self._final.exists() and not self._force:
            raise FileExistsError(f"{self._final} exists; give another name, or --force to replace it")

    def _clear(self) -> None:
        """Removes everything but lock and journal."""
        for path in self.folder.iterdir():
            if path.name in ("lock", self.journal.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _holds_anything(path: Path) -> bool:
    """True for a folder or file that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _sync(path: Path) -> None:
    """Has a folder's or file's content on the disk before it is renamed: a crash must not leave an empty shell."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        sync_entry(file)


def sync_entry(path: Path) -> None:
    """Has a file, or what a folder lists, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
