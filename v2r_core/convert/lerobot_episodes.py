"""A LeRobotDataset v3 whose episodes can be kept one by one, and be taken over without decoding or encoding anything.

An encoder remembers the frames before, also those of another episode. Here each episode has an encoder of its own: its
packets depend on its frames alone, and a file that is put together from packets that were kept equals one that was
encoded in one go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from v2r_core.convert.journal import load_arrays, save_arrays
from v2r_core.label.lerobot_camera import TO_TRAIN_ON, CameraWriter
from v2r_core.label.lerobot_stats import ImageStats, Stats
from v2r_core.label.lerobot_tables import MEGABYTE
from v2r_core.label.lerobot_writer import LeRobotWriter
from v2r_core.video.lerobot_schema import Feature
from v2r_core.video.resize import Frame

_HEAD = struct.Struct("<I?")
"""Of a packet: its length in bytes, and whether it is a key frame."""
_NUMBERS = "numbers.npz"


class EpisodeCamera(CameraWriter):
    """A camera whose episodes are encoded one by one.

    Attributes:
        newest: statistics of the episode that was ended last.
    """

    def __init__(self, root: Path, camera: str, fps: float, chunks_size: int, most_bytes: float) -> None:
        """Writes nothing yet; see `CameraWriter`."""
        super().__init__(root, camera, fps, chunks_size, most_bytes)
        self._encoder: VideoCodecContext | None = None
        self._kept: BinaryIO | None = None
        self._recalled: Iterator[av.Packet] | None = None
        self.newest: Stats = {}

    def begin_episode(self, path: Path) -> None:
        """Has the packets of the next episode written to a file too."""
        self._kept = path.open("wb")

    def recall_episode(self, path: Path, stats: Stats) -> None:
        """Has the packets of the next episode taken from a file; its frames are only counted.

        Args:
            path: see `begin_episode`.
            stats: of the episode.
        """
        self._kept = path.open("rb")
        self._recalled = _packets(self._kept)
        self._stats = _KnownStats(stats)

    def add(self, frame: Frame) -> None:
        """See `CameraWriter.add`."""
        output, stream = self._opened(frame)
        packet = self._encoded(frame) if self._recalled is None else next(self._recalled)
        packet.stream, packet.time_base, packet.duration = stream, 1 / self._rate, 1
        packet.pts = packet.dts = self._in_file + self._in_episode
        self._bytes += packet.size
        output.mux(packet)
        self._stats.add(frame)
        self._in_episode += 1

    def end_episode(self) -> tuple[dict[str, int | float], Stats]:
        """See `CameraWriter.end_episode`."""
        self._release()
        place, self.newest = super().end_episode()
        return place, self.newest

    def discard_episode(self) -> None:
        """See `CameraWriter.discard_episode`."""
        self._release()
        super().discard_episode()

    def _encoded(self, frame: Frame) -> av.Packet:
        if self._encoder is None:
            self._encoder = self._new_encoder(frame)
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts = self._in_episode
        (packet,) = self._encoder.encode(picture)  # it keeps no frame back
        if self._kept is not None:
            self._kept.write(_HEAD.pack(packet.size, packet.is_keyframe))
            self._kept.write(packet)
        return packet

    def _new_encoder(self, frame: Frame) -> VideoCodecContext:
        encoder = av.CodecContext.create("libx264", "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.height, encoder.width = frame.shape[:2]
        encoder.pix_fmt = "yuv420p"
        encoder.options = dict(TO_TRAIN_ON)
        encoder.framerate, encoder.time_base = self._rate, 1 / self._rate
        # What several threads make of the same frames depends on their number.
        encoder.thread_count = 1
        # The file has the parameters of the stream in one place, for all packets.
        encoder.flags |= Flags.global_header
        return encoder

    def _release(self) -> None:
        """Forgets encoder and file of an episode."""
        if self._kept is not None:
            self._kept.close()
        self._encoder = self._kept = self._recalled = None


class EpisodeWriter(LeRobotWriter):
    """See `LeRobotWriter`. Each episode is either begun and added to, or recalled."""

    def __init__(self, folder: Path, fps: float, features: Mapping[str, Feature], *, force: bool = False) -> None:
        """Checks what is to be written; see `LeRobotWriter`."""
        super().__init__(folder, fps, features, force=force)
        most = self._limits.video_files_size_in_mb * MEGABYTE
        self._own_cameras = {
            name: EpisodeCamera(self._root, name, fps, self._limits.chunks_size, most) for name in self._cameras
        }
        self._cameras.update(self._own_cameras)
        self._folder = folder

    def begin_episode(self, folder: Path) -> None:
        """Has all of the next episode written to a folder too, which is complete after `save_episode`."""
        self._folder = folder
        for number, camera in enumerate(self._own_cameras.values()):
            camera.begin_episode(_packet_file(folder, number))

    def save_episode(self, task: str) -> int:
        """See `LeRobotWriter.save_episode`."""
        columns = {f"column/{name}": np.stack(values) for name, values in self._columns.items()}
        number = super().save_episode(task)
        stats = {
            f"stats/{place}/{kind}": value
            for place, camera in enumerate(self._own_cameras.values())
            for kind, value in camera.newest.items()
        }
        save_arrays(self._folder / _NUMBERS, columns | stats)
        return number

    def recall_episode(self, folder: Path, task: str) -> dict[str, NDArray[Any]]:
        """Writes an episode from the folder that `begin_episode` was given.

        Args:
            folder: of the episode.
            task: what it was to do, in words.

        Returns:
            Its numbers, (T, *shape) by feature.
        """
        arrays = load_arrays(folder / _NUMBERS)
        columns = {key.removeprefix("column/"): values for key, values in arrays.items() if key.startswith("column/")}
        for number, camera in enumerate(self._own_cameras.values()):
            prefix = f"stats/{number}/"
            stats = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            camera.recall_episode(_packet_file(folder, number), stats)
        # Frames that nobody looks at, of the right size.
        nothing = {name: np.broadcast_to(np.uint8(0), self._own[name].shape) for name in self._own_cameras}
        for place in range(_frames(arrays)):
            self.add_frame({**nothing, **{name: values[place] for name, values in columns.items()}})
        super().save_episode(task)
        return columns


class _KnownStats(ImageStats):
    """Statistics of frames that are not there any more."""

    def __init__(self, stats: Stats) -> None:
        super().__init__()
        self._known = stats

    def add(self, frame: Frame) -> None:
        """Counts nothing."""

    def stats(self) -> Stats:
        return self._known


def _packet_file(folder: Path, number: int) -> Path:
    return folder / f"camera_{number}.packets"


def _packets(file: BinaryIO) -> Iterator[av.Packet]:
    while head := file.read(_HEAD.size):
        size, is_key = _HEAD.unpack(head)
        packet = av.Packet(file.read(size))
        packet.is_keyframe = is_key
        yield packet


def _frames(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Frames of an episode: every camera counts them."""
    return int(arrays["stats/0/count"][0])
