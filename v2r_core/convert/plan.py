"""Which messages make which frame: decided from the times alone, before anything is decoded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.bag_index import BagIndex
from v2r_core.convert.grid import NONE, SECOND_NS, median_rate, newest_at, runs, sample_instants
from v2r_core.convert.parts import LABEL_FIELDS, LeftOut, no_label, resampled
from v2r_core.convert.topics import Topics
from v2r_core.deploy.stream import Status

OLDEST_STEPS, OLDEST_S = 4, 0.2
"""A message is too old after so many of its stream's own steps, but not before so many seconds."""


@dataclass(frozen=True)
class Piece:
    """Frames that follow one another without a hole.

    Attributes:
        episode: number of the episode in the recording.
        instants: (T,) nanoseconds.
        numbers: (T,) number of the message by stream; `NONE` where another stream has its joints, and it none yet.
        task: in words.
        labels: (T, 8) float64, `LABEL_FIELDS`; None: the recording is not labelled.
    """

    episode: int
    instants: NDArray[np.int64]
    numbers: Mapping[str, NDArray[np.int64]]
    task: str
    labels: NDArray[np.float64] | None


def oldest(stamps: NDArray[np.int64], wished: float | None) -> float:
    """How old the newest message of a stream may be, in nanoseconds.

    Args:
        stamps: (N,) ascending nanoseconds of its messages.
        wished: seconds; None: `OLDEST_STEPS` of the stream's own steps, at least `OLDEST_S`, and for ever if it has a
            single message, as what is latched has.
    """
    if wished is not None:
        return wished * SECOND_NS
    rate = median_rate(stamps)
    return np.inf if np.isnan(rate) else max(OLDEST_STEPS / rate, OLDEST_S) * SECOND_NS


class Planner:
    """Plans the episodes of a bag.

    Attributes:
        stamps: (N,) nanoseconds of the messages of each stream that is taken.
        labelled_topic: the camera that the rewards are of; None: the bag has none, or of no camera that is taken.
    """

    def __init__(
        self, index: BagIndex, topics: Topics, fps: int, clock: str, max_age: float | None, task: str | None
    ) -> None:
        """Sorts the stamps.

        Args:
            index: of the bag.
            topics: what is taken.
            fps: frames a second.
            clock: see `Track.stamps`.
            max_age: see `oldest`.
            task: of all episodes; None: what the topic says.
        """
        self._index, self._fps, self._task = index, fps, task
        self._camera = next(iter(topics.cameras.values()))
        parts = [part.topic for each in topics.vectors.values() for part in each]
        needed = [(topic,) for topic in topics.cameras.values()] + [n for p in parts for n in index.streams.needed(p)]
        self._needed = list(dict.fromkeys(needed))
        self._taken = list(dict.fromkeys(stream for streams in self._needed for stream in streams))
        self.stamps = {stream: index.tracks[stream].stamps(clock) for stream in self._taken}
        self._places = {stream: np.array(index.tracks[stream].places, np.int64) for stream in self._taken}
        self._oldest = {stream: oldest(np.sort(self.stamps[stream]), max_age) for stream in self._taken}
        self._rewards = _Rewards(index, topics.rewards) if topics.rewards is not None else None
        self.labelled_topic = self._find_labelled(list(topics.cameras.values()))

    def pieces(self, left_out: LeftOut) -> list[Piece]:
        """All frames, episode by episode.

        An episode has the messages that were recorded between its marks, or where there is no mark, between the images
        of the episodes beside it. Where the newest message of a topic is older than it may be, or there is none yet,
        there is no frame (where a topic has several streams: where that holds of all streams that have a joint). If
        frames come after that again, they are an episode of their own, since a dataset has a constant rate, and a hole
        in it would look like a jump of the robot. A frame that would be alone is left out.

        Args:
            left_out: is told what is left out.
        """
        found: list[Piece] = []
        for number in range(len(self._index.boundaries)):
            found += self._episode(number, left_out)
        return found

    def _episode(self, number: int, left_out: LeftOut) -> list[Piece]:
        order = self._messages_of(number)
        instants = sample_instants(self.stamps[self._camera][order[self._camera]], self._fps)
        at = {stream: newest_at(self.stamps[stream][order[stream]], instants) for stream in self._taken}
        ages = {stream: instants - _chosen(self.stamps[stream][order[stream]], at[stream]) for stream in self._taken}
        fresh = np.ones(len(instants), bool)
        for streams in self._needed:
            fresh &= self._fresh(streams, at, ages, fresh, left_out)
        pieces = list(runs(fresh))
        alone = [piece for piece in pieces if piece.stop - piece.start == 1]
        left_out.frames["alone, with no frame before or after"] += len(alone)
        pieces = [piece for piece in pieces if piece not in alone]
        left_out.cuts += max(len(pieces) - 1, 0)
        labelled = self.labelled_topic
        rows = self._labels(labelled, order[labelled]) if labelled is not None else np.empty((0, 5))
        found = []
        for piece in pieces:
            numbers = {stream: _chosen(order[stream], at[stream][piece]) for stream in self._taken}
            labels = resampled(rows, at[labelled][piece]) if labelled is not None else None
            place = int(self._places[self._camera][numbers[self._camera][0]])
            found.append(Piece(number, instants[piece], numbers, self._text(place), labels))
        return found

    def _messages_of(self, episode: int) -> dict[str, NDArray[np.int64]]:
        """Numbers of the messages of an episode by stream, in the order of their stamps."""
        first, last = self._span(episode)
        order = {}
        for stream in self._taken:
            places = self._places[stream]
            # What was said once for the whole recording holds in all its episodes.
            inside = np.flatnonzero((places >= first) & (places < last)) if len(places) > 1 else np.zeros(1, np.int64)
            # Stable: of messages with the same stamp the one that was recorded last counts.
            order[stream] = inside[np.argsort(self.stamps[stream][inside], kind="stable")]
        return order

    def _fresh(
        self,
        streams: Sequence[str],
        at: Mapping[str, NDArray[np.int64]],
        ages: Mapping[str, NDArray[np.int64]],
        so_far: NDArray[np.bool_],
        left_out: LeftOut,
    ) -> NDArray[np.bool_]:
        """Which frames one of the streams has a message for. A frame is counted for the first that it lacks."""
        missing = np.all([at[stream] == NONE for stream in streams], axis=0)
        fresh = np.any([(at[each] != NONE) & (ages[each] <= self._oldest[each]) for each in streams], axis=0)
        longest = max(self._oldest[stream] for stream in streams) / SECOND_NS
        left_out.frames[f"no message of {streams[0]} yet"] += int((missing & so_far).sum())
        left_out.frames[f"{streams[0]} older than {longest:.3g} s"] += int((~fresh & ~missing & so_far).sum())
        found: NDArray[np.bool_] = fresh
        return found

    def _span(self, episode: int) -> tuple[int, int]:
        """First place of an episode's messages, and the one after the last."""
        boundaries, images = self._index.boundaries, self._places[self._camera]
        here = boundaries[episode]
        before = int(images[here.image - 1]) + 1 if here.image else 0
        first = before if here.marked is None else here.marked
        if episode + 1 == len(boundaries):
            return first, int(np.iinfo(np.int64).max)
        after = boundaries[episode + 1]
        return first, int(images[after.image]) if after.marked is None else after.marked

    def _text(self, place: int) -> str:
        """The task: the newest text before the first frame; if there is none, the first one after it."""
        if self._task is not None or not self._index.texts:
            return self._task or ""
        newest = bisect_left(self._index.texts, (place,)) - 1
        return self._index.texts[max(newest, 0)][1]

    def _find_labelled(self, cameras: list[str]) -> str | None:
        """The camera most of whose images have rewards with their stamps."""
        if self._rewards is None:
            return None
        stamps = self._rewards.stamps
        hits = {each: int(np.isin(self._index.tracks[each].headers, stamps).sum()) for each in cameras}
        best = max(cameras, key=lambda camera: hits[camera])
        return best if hits[best] else None

    def _labels(self, camera: str, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self._rewards is not None
        track = self._index.tracks[camera]
        return np.array([self._rewards.of(track.headers[each], track.places[each]) for each in numbers])


class _Rewards:
    """The rewards of a bag by the stamps of their images.

    Attributes:
        stamps: (N,) ascending nanoseconds.
    """

    def __init__(self, index: BagIndex, topic: str) -> None:
        stamps, places = np.array(index.rewards["stamp"]), np.array(index.tracks[topic].places)
        order = np.lexsort((places, stamps))
        self.stamps, self._places = stamps[order], places[order]
        self._rows = np.stack([np.array(index.rewards[name], np.float64) for name in LABEL_FIELDS], axis=1)[order]

    def of(self, stamp: int, place: int) -> NDArray[np.float64]:
        """The label of an image, (8,); of several with its stamp, which a restart makes, the first one after it."""
        first, last = np.searchsorted(self.stamps, stamp, side="left"), np.searchsorted(self.stamps, stamp, "right")
        if first == last:
            return no_label(Status.STALE_IMAGE)  # the node had none for it
        after = first + np.searchsorted(self._places[first:last], place)
        row: NDArray[np.float64] = self._rows[min(after, last - 1)]
        return row


def _chosen(values: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values at some places, `NONE` for the place `NONE`."""
    found = np.full(len(at), NONE, np.int64)
    found[at != NONE] = values[at[at != NONE]]
    return found
