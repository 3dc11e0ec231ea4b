"""Episodes that are finished, kept until the conversion is: one that dies goes on behind the last of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from v2r_core.convert.parts import Episode, Layout, LeftOut, Sample
from v2r_core.label.partial import sync_entry

_HALF = ".half"
_RECORDING = "recording.json"


def recording_key(*origin: object) -> str:
    """The name under which the episodes of a recording are kept.

    Args:
        origin: all that decides what becomes of it, such as its size, its time of change and the options.
    """
    return hashlib.sha256(json.dumps(origin, default=str).encode()).hexdigest()[:24]


def episode_key(recording: str, place: int) -> str:
    """The name of an episode: that of its recording, and its place in it."""
    return f"{recording}/{place:06d}"


@dataclass(frozen=True)
class KnownEpisode:
    """What is said of an episode; see `Episode`."""

    name: str
    task: str
    start_ns: int
    length: int


@dataclass
class KnownRecording:
    """A recording whose episodes are all kept: a source that is not opened again. See `parts.Source`.

    Attributes:
        layout: what its frames have.
        left_out: what is not converted.
        known: its episodes.
    """

    layout: Layout
    left_out: LeftOut
    known: list[KnownEpisode]

    def episodes(self) -> Sequence[Episode]:
        """Its episodes, which have no frames to give: their sink has them."""
        return [Episode(each.name, each.task, each.start_ns, each.length, _gone) for each in self.known]

    def close(self) -> None:
        """Nothing is open."""


_ADAPTER = TypeAdapter(KnownRecording)


class EpisodeJournal:
    """The folder of finished episodes: KEY/NUMBER, each with the files of its sink. Not thread-safe.

    An episode is there as a whole or not at all, also after a crash of the machine.
    """

    def __init__(self, folder: Path) -> None:
        """Only names it; whoever does not hold the lock of what is written may read recordings and no more.

        Args:
            folder: of the journal; its parent is there when it is opened.
        """
        self._folder = folder

    def open_in(self, holder: AbstractContextManager[object]) -> None:
        """Enters what holds the folder's lock, and opens the journal; leaves it again if that fails.

        Raises:
            FileExistsError: see `open`.
        """
        with ExitStack() as stack:
            stack.enter_context(holder)
            self.open()
            stack.pop_all()

    def open(self) -> None:
        """Makes it if it is not there, and removes what was not finished.

        Raises:
            FileExistsError: it is the journal of something else.
        """
        with suppress(FileExistsError):
            self._folder.mkdir()
        if not self._folder.is_dir() or any(not entry.is_dir() for entry in self._folder.iterdir()):
            raise FileExistsError(
                f"{self._folder.parent} was left by an interrupted `v2r label`; finish that, remove the folder, or "
                "give another name"
            )
        self.tidy()

    def episode(self, key: str) -> Path | None:
        """The folder of an episode that is finished, else None.

        Args:
            key: of the episode, KEY/NUMBER.
        """
        path = self._folder / key
        return path if path.is_dir() else None

    def begin(self, key: str) -> Path:
        """An empty folder for the files of an episode."""
        shutil.rmtree(self.begun(key), ignore_errors=True)
        self.begun(key).mkdir(parents=True)
        return self.begun(key)

    def begun(self, key: str) -> Path:
        """The folder that `begin` has made."""
        path = self._folder / key
        return path.with_name(path.name + _HALF)

    def end(self, key: str) -> Path:
        """Says that an episode is finished, and where its files are now."""
        half, path = self.begun(key), self._folder / key
        for file in [*half.iterdir(), half]:
            sync_entry(file)
        half.rename(path)
        sync_entry(path.parent)
        return path

    def discard(self, key: str) -> None:
        """Takes back what was begun."""
        shutil.rmtree(self.begun(key), ignore_errors=True)

    def recording(self, key: str) -> KnownRecording | None:
        """What is known of a recording whose episodes are all here, else None."""
        try:
            found = _ADAPTER.validate_json((self._folder / key / _RECORDING).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None
        places = range(len(found.known))
        return found if all(self.episode(episode_key(key, place)) is not None for place in places) else None

    def end_recording(self, key: str, layout: Layout, left_out: LeftOut, episodes: Sequence[Episode]) -> None:
        """Says that all episodes of a recording are here."""
        known = [KnownEpisode(each.name, each.task, each.start_ns, each.length) for each in episodes]
        half = self.begun(f"{key}/{_RECORDING}")
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(_ADAPTER.dump_json(KnownRecording(layout, left_out, known)))
        sync_entry(half)
        half.rename(half.with_name(_RECORDING))

    def forget(self, key: str) -> None:
        """Removes all episodes of a recording."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def tidy(self) -> None:
        """Removes what was not finished; without a finished episode nothing remains."""
        for recording in list(self._folder.iterdir()):
            for half in recording.glob(f"*{_HALF}"):
                if half.is_dir():
                    shutil.rmtree(half)
                else:
                    half.unlink()
            if not any(recording.iterdir()):
                recording.rmdir()


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays by name to an .npz file."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `save_arrays`."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _gone() -> Iterator[Sample]:
    raise RuntimeError("a kept episode is taken from the journal and not read again")
