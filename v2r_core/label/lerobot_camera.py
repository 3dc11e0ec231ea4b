"""Frames of one camera into the mp4 files of a LeRobotDataset v3, many episodes to a file."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from v2r_core.label.lerobot_stats import ImageStats, Stats
from v2r_core.label.lerobot_tables import next_place
from v2r_core.video.lerobot_schema import VIDEO_PATH
from v2r_core.video.resize import Frame

TO_TRAIN_ON: Mapping[str, str] = MappingProxyType(
    {"crf": "23", "preset": "veryfast", "tune": "zerolatency", "g": "2", "forced-idr": "1"}
)
"""Options of libx264. Training jumps to single frames: every second one is a key frame, so that at most two have to be
decoded for one. The encoder keeps no frame back, which that few between key frames would not gain from."""


class CameraWriter:
    """Encodes as frames come. Equal frames give equal files, with one build of libx264."""

    def __init__(self, root: Path, camera: str, fps: float, chunks_size: int, most_bytes: float) -> None:
        """Writes nothing yet.

        Args:
            root: folder of the dataset.
            camera: name of the feature.
            fps: frames a second.
            chunks_size: files a chunk.
            most_bytes: of a file, not counting its index; an episode longer than the one before may lead above it.
        """
        self._root, self._camera = root, camera
        self._fps = fps
        self._rate = Fraction(fps).limit_denominator(10_000)
        self._chunks_size, self._most_bytes = chunks_size, most_bytes
        self._place = (0, 0)
        self._output: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._in_file = self._in_episode = self._bytes = self._bytes_before = 0
        self._stats = ImageStats()

    def add(self, frame: Frame) -> None:
        """Encodes the next frame of the episode, uint8 RGB (H, W, 3), always of one size, with even sides."""
        output, stream = self._opened(frame)
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts = self._in_file + self._in_episode
        if not self._in_episode:
            # Episodes are read from their beginning: nothing before it should have to be decoded.
            picture.pict_type = PictureType.I
        packets = stream.encode(picture)
        self._bytes += sum(packet.size for packet in packets)
        output.mux(packets)
        self._stats.add(frame)
        self._in_episode += 1

    def end_episode(self) -> tuple[dict[str, int | float], Stats]:
        """Ends an episode of at least one frame.

        Returns:
            Where it is, as the columns of the table of episodes, and the statistics of its frames.
        """
        begin, end = self._in_file / self._fps, (self._in_file + self._in_episode) / self._fps
        prefix = f"videos/{self._camera}"
        place: dict[str, int | float] = {
            f"{prefix}/chunk_index": self._place[0],
            f"{prefix}/file_index": self._place[1],
            f"{prefix}/from_timestamp": begin,
            f"{prefix}/to_timestamp": end,
        }
        stats = self._stats.stats()
        self._stats = ImageStats()
        self._in_file += self._in_episode
        self._in_episode = 0
        if self._bytes + (self._bytes - self._bytes_before) >= self._most_bytes:
            self.close()
            self._place = next_place(self._place, self._chunks_size)
        else:
            self._bytes_before = self._bytes
        return place, stats

    def discard_episode(self) -> None:
        """Forgets the frames since the last episode: they stay in the file and belong to no episode."""
        self._stats = ImageStats()
        self._in_file += self._in_episode
        self._in_episode = 0

    def close(self) -> None:
        """Ends the file. May be called twice."""
        output, stream = self._output, self._stream
        self._output = self._stream = None
        self._in_file = self._bytes = self._bytes_before = 0
        if output is not None and stream is not None:
            with output:
                output.mux(stream.encode())

    def _opened(self, frame: Frame) -> tuple[OutputContainer, VideoStream]:
        if self._output is None or self._stream is None:
            chunk, file = self._place
            path = self._root / VIDEO_PATH.format(video_key=self._camera, chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            muxing = {"movflags": "faststart", "fflags": "bitexact"}
            self._output = av.open(str(path), "w", format="mp4", options=muxing)
            self._stream = self._output.add_stream("libx264", rate=self._rate, options=dict(TO_TRAIN_ON))
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = 1 / self._rate
            # What several threads make of the same frames depends on their number.
            self._stream.codec_context.thread_count = 1
        return self._output, self._stream
