"""A LeRobotDataset v3 as what a recording becomes."""

from __future__ import annotations

from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from v2r_core.convert.journal import EpisodeJournal
from v2r_core.convert.lerobot_episodes import EpisodeWriter
from v2r_core.convert.parts import LABEL_FIELDS, ConvertError, Episode, LabelRow, Layout, Sample
from v2r_core.convert.provenance import FILE, EpisodeOrigin, Provenance
from v2r_core.label.lerobot_copy import LABELS, NEXT_REWARD, PROGRESS, RECORD, progress_schema
from v2r_core.label.lerobot_tables import write_json
from v2r_core.label.partial import PartialFolder
from v2r_core.video.lerobot_schema import Feature

_PROGRESS = "v2r.progress"
_REWARD = Feature(dtype="float32", shape=(1,))


class LeRobotSink:
    """Writes a dataset: see `parts.Sink`. One frame waits, because `next.reward` is that of the frame after it."""

    def __init__(self, out: Path, layout: Layout, force: bool, journal: EpisodeJournal) -> None:
        """Begins the dataset.

        Args:
            out: its folder.
            layout: what frames have.
            force: replace `out` if it is there.
            journal: in the folder of what is not complete; its packets and numbers need as much space as the dataset.

        Raises:
            FileExistsError: `out` is there, or another process is writing it.
            ConvertError: a feature cannot be written.
        """
        self._layout, self._journal = layout, journal
        try:
            self._writer = EpisodeWriter(out, layout.fps, _features(layout), force=force)
        except ValueError as error:
            raise ConvertError(f"{out}: {error}") from error
        self._meta = PartialFolder(out, force).product / "meta"
        journal.open_in(self._writer)
        self._origins: list[EpisodeOrigin] = []
        self._episode: Episode | None = None
        self._waiting: dict[str, Any] | None = None
        self._progress: list[array[float]] = []

    def place(self) -> tuple[int, ...]:
        """See `parts.Sink`."""
        return ()

    def recall(self, episode: Episode) -> bool:
        """See `parts.Sink`."""
        folder = self._journal.episode(episode.key)
        if folder is None:
            return False
        columns = self._writer.recall_episode(folder, episode.task)
        self._progress.append(array("f", columns.get(_PROGRESS, np.empty(0)).ravel().tolist()))
        self._note_origin(episode)
        return True

    def begin(self, episode: Episode) -> None:
        """See `parts.Sink`."""
        self._episode, self._waiting = episode, None
        self._progress.append(array("f"))
        self._writer.begin_episode(self._journal.begin(episode.key))

    def add(self, sample: Sample) -> None:
        """See `parts.Sink`."""
        frame: dict[str, Any] = {**sample.images, **sample.vectors}
        if sample.label is None:
            self._writer.add_frame(frame)
            return
        self._progress[-1].append(sample.label.progress)
        self._flush(sample.label.reward)
        self._waiting = frame | _label_of(sample.label)

    def end(self) -> None:
        """See `parts.Sink`."""
        assert self._episode is not None
        self._flush(float("nan"))  # no step begins at the last frame
        self._writer.save_episode(self._episode.task)
        self._journal.end(self._episode.key)
        self._note_origin(self._episode)
        self._episode = None

    def discard(self) -> None:
        """See `parts.Sink`."""
        if self._episode is not None:
            self._writer.discard_episode()
            self._journal.discard(self._episode.key)
            self._episode = self._waiting = None
            self._progress.pop()

    def finish(self) -> None:
        """See `parts.Sink`."""
        self._meta.mkdir(exist_ok=True)
        write_json(self._meta / FILE.name, Provenance(episodes=self._origins).model_dump(mode="json"))
        if self._layout.head is not None:
            write_json(self._meta / RECORD.name, {"schema_version": 1, **asdict(self._layout.head)})
            _write_progress(self._meta.parent / PROGRESS, self._progress, self._layout.head.model)
        self._writer.finish()
        self._writer.__exit__(None, None, None)

    def abort(self) -> None:
        """See `parts.Sink`."""
        self._writer.discard_episode()
        self._journal.tidy()
        self._writer.__exit__(None, None, None)

    def _note_origin(self, episode: Episode) -> None:
        self._origins.append(EpisodeOrigin(name=episode.name, start_ns=episode.start_ns))

    def _flush(self, next_reward: float) -> None:
        if self._waiting is not None:
            self._writer.add_frame(self._waiting | {NEXT_REWARD: np.float32(next_reward)})
            self._waiting = None


def _write_progress(path: Path, episodes: list[array[float]], model: str) -> None:
    """Writes what LeRobot's reward-weighted training reads; see `label_dataset`."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    lengths = [len(each) for each in episodes]
    columns = {
        "index": np.arange(sum(lengths), dtype=np.int64),
        "episode_index": np.repeat(np.arange(len(lengths), dtype=np.int64), lengths),
        "frame_index": np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        "progress_sparse": np.concatenate([np.array(each, np.float32) for each in episodes]),
    }
    pq.write_table(pa.table(columns, schema=progress_schema(model)), path)


def _features(layout: Layout) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for name, (height, width) in layout.cameras.items():
        names = ["height", "width", "channels"]
        features[name] = Feature(dtype="video", shape=(height, width, 3), names=names)
    for name, vector in layout.vectors.items():
        entries = None if vector.names is None else list(vector.names)
        features[name] = Feature(dtype="float32", shape=(vector.length,), names=entries)
    if layout.head is not None:
        features |= {**LABELS, NEXT_REWARD: _REWARD}
    return features


def _label_of(label: LabelRow) -> dict[str, Any]:
    return {f"v2r.{name}": np.dtype(LABELS[f"v2r.{name}"].dtype).type(getattr(label, name)) for name in LABEL_FIELDS}
