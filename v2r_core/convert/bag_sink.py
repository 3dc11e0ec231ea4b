"""A rosbag2 as what a recording becomes."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from v2r_core.convert.grid import SECOND_NS
from v2r_core.convert.journal import EpisodeJournal
from v2r_core.convert.numbers import JOINT_STATE
from v2r_core.convert.parts import IMAGES, ConvertError, Episode, LabelHead, Layout, Sample
from v2r_core.convert.topics import STRING
from v2r_core.deploy.description import KIND_STEP_REWARD, KIND_VALUE
from v2r_core.deploy.judging import FLOATS
from v2r_core.label.messages import EPISODE, REWARD, REWARD_INFO, Header, Messages, label_qos
from v2r_core.label.partial import PartialFolder
from v2r_core.video.bag import COMPRESSED, RAW
from v2r_core.video.resize import Frame

NAMESPACE, EPISODES, TASKS = "/reward_node", "/episode", "/task"
ARRAY = "std_msgs/msg/Float64MultiArray"
QUALITY = 95
"""Of JPEG, in [1, 100]."""
APART_NS = 10 * SECOND_NS
"""From one episode to the next where it is not known when they were, so that a gap tells them apart too."""
_LATCHED = (TASKS, f"{NAMESPACE}/info")
_HEAD = struct.Struct("<HqI")
"""Of a message in the journal: number of its topic, time in nanoseconds, length in bytes."""
_MESSAGES = "messages"


class BagSink:
    """Writes a rosbag2 (MCAP): see `parts.Sink`.

    Topics: /NAME/image_raw/compressed (JPEG) or /NAME/image_raw of camera NAME; the name of a feature with / for its
    dots, sensor_msgs/JointState where its entries have names, else Float64MultiArray; /task; the rewards of a labelled
    recording on /reward_node/reward; and a v2r_msgs/Episode on /episode behind the last frame of each. All messages of
    a frame have the same time. An episode lies in the journal until it is complete.
    """

    def __init__(
        self, out: Path, layout: Layout, force: bool, sources: set[Path], raw: bool, journal: EpisodeJournal
    ) -> None:
        """Begins the bag.

        Args:
            out: its folder.
            layout: what frames have.
            force: replace `out` if it is there.
            sources: what must not be replaced.
            raw: write images as they are, not as JPEG.
            journal: in the folder of what is not complete; its messages need as much space as the bag.

        Raises:
            FileExistsError: `out` is there, or another process is writing it.
            ConvertError: two features would have one topic.
        """
        self._layout, self._raw, self._journal = layout, raw, journal
        self._messages = Messages(NAMESPACE)
        self._partial = PartialFolder(out, force, sources)
        kinds = dict[str, str]()
        for topic, kind in self._kinds():
            if topic in kinds:
                raise ConvertError(f"{out}: two features would be the topic {topic}; rename one of them in the source")
            kinds[topic] = kind
        journal.open_in(self._partial)
        self._writer = Writer(self._partial.product, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._topics: list[Connection] = []
        self._numbers: dict[str, int] = {}
        for topic, kind in kinds.items():
            self._numbers[topic] = len(self._topics)
            qos = [label_qos(topic in _LATCHED)]
            types = self._messages.types
            self._topics.append(self._writer.add_connection(topic, kind, typestore=types, offered_qos_profiles=qos))
        self._spool: BinaryIO | None = None
        self._episode: Episode | None = None
        self._count = self._frames = 0
        self._start_ns = self._end_ns = self._now_ns = 0
        self._tally: list[tuple[float, float, int]] = []

    def place(self) -> tuple[int, ...]:
        """See `parts.Sink`: messages say the number of their episode, and come after those of the one before."""
        return (self._count, self._end_ns) if self._count else ()

    def recall(self, episode: Episode) -> bool:
        """See `parts.Sink`."""
        folder = self._journal.episode(episode.key)
        if folder is None:
            return False
        self._take_over(folder)
        return True

    def begin(self, episode: Episode) -> None:
        """See `parts.Sink`."""
        self._spool = (self._journal.begin(episode.key) / _MESSAGES).open("wb")
        self._episode, self._frames, self._tally = episode, 0, []
        first = self._end_ns + APART_NS
        # Messages in a bag are in the order of their times, whatever the clocks of two recordings said.
        self._start_ns = episode.start_ns if episode.start_ns > self._end_ns else first
        self._now_ns = self._start_ns
        self._put(TASKS, STRING, data=episode.task)
        if not self._count and self._layout.head is not None:
            self._put_bytes(f"{NAMESPACE}/info", self._messages.info(self._now_ns, _info(self._layout.head)))

    def add(self, sample: Sample) -> None:
        """See `parts.Sink`."""
        self._now_ns = self._start_ns + round(self._frames * SECOND_NS / self._layout.fps)
        for camera, frame in sample.images.items():
            self._put_image(camera, frame)
        for name, values in sample.vectors.items():
            self._put_numbers(name, values)
        if sample.label is not None:
            head, label = self._layout.head, sample.label
            assert head is not None
            counts = {"episode": self._count, "frame_count": self._frames + 1, "goal_id": ""}
            fields = dict.fromkeys(FLOATS, float("nan")) | asdict(label) | counts
            header = Header(self._now_ns, _frame_id(head.camera))
            self._put_bytes(f"{NAMESPACE}/reward", self._messages.reward(header, fields))
            self._tally.append((label.reward, label.progress, label.status))
        self._frames += 1

    def end(self) -> None:
        """See `parts.Sink`."""
        time, duration = (self._messages.types.types[f"builtin_interfaces/msg/{name}"] for name in ("Time", "Duration"))
        rewards = np.array([row[0] for row in self._tally])
        progress = np.array([row[1] for row in self._tally if np.isfinite(row[1])])
        valid = sum(row[2] == 0 for row in self._tally)
        self._put(
            EPISODES,
            EPISODE,
            header=self._header(_frame_id(next(iter(self._layout.cameras)))),
            start=time(*divmod(self._start_ns, SECOND_NS)),
            end_reason=0,
            episode=self._count,
            goal_id="",
            steps=valid,
            invalid_steps=len(self._tally) - valid,
            return_sum=float(rewards[np.isfinite(rewards)].sum()),
            final_progress=float(progress[-1]) if len(progress) else float("nan"),
            max_progress=float(progress.max()) if len(progress) else float("nan"),
            duration=duration(*divmod(self._now_ns - self._start_ns, SECOND_NS)),
        )
        self._close_spool()
        assert self._episode is not None
        self._take_over(self._journal.end(self._episode.key))
        self._episode = None

    def discard(self) -> None:
        """See `parts.Sink`."""
        self._close_spool()
        if self._episode is not None:
            self._journal.discard(self._episode.key)
        self._episode = None

    def finish(self) -> None:
        """See `parts.Sink`."""
        self._writer.close()
        self._partial.finish()
        self._partial.__exit__(None, None, None)

    def abort(self) -> None:
        """See `parts.Sink`."""
        self.discard()
        self._journal.tidy()
        self._writer.abort()
        self._partial.__exit__(None, None, None)

    def _kinds(self) -> Iterator[tuple[str, str]]:
        for camera in self._layout.cameras:
            yield self._camera_topic(camera), RAW if self._raw else COMPRESSED
        for name, vector in self._layout.vectors.items():
            yield topic_name(name), ARRAY if vector.names is None else JOINT_STATE
        yield TASKS, STRING
        yield EPISODES, EPISODE
        if self._layout.head is not None:
            yield f"{NAMESPACE}/info", REWARD_INFO
            yield f"{NAMESPACE}/reward", REWARD

    def _camera_topic(self, camera: str) -> str:
        return f"{topic_name(_frame_id(camera))}/image_raw" + ("" if self._raw else "/compressed")

    def _put_image(self, camera: str, frame: Frame) -> None:
        header = self._header(_frame_id(camera))
        if self._raw:
            height, width = frame.shape[:2]
            shape = {"height": height, "width": width, "step": 3 * width}
            pixels = np.ascontiguousarray(frame).ravel()
            kind, fields = RAW, {**shape, "encoding": "rgb8", "is_bigendian": 0, "data": pixels}
        else:
            out = io.BytesIO()
            Image.fromarray(frame).save(out, "JPEG", quality=QUALITY, subsampling=0)
            kind, fields = COMPRESSED, {"format": "jpeg", "data": np.frombuffer(out.getvalue(), np.uint8)}
        self._put(self._camera_topic(camera), kind, header=header, **fields)

    def _put_numbers(self, name: str, values: NDArray[np.float32]) -> None:
        names, numbers = self._layout.vectors[name].names, values.astype(np.float64)
        if names is not None:
            none, header = np.empty(0), self._header("")
            fields = {"header": header, "name": list(names), "position": numbers, "velocity": none, "effort": none}
            self._put(topic_name(name), JOINT_STATE, **fields)
        else:
            layout = self._messages.types.types["std_msgs/msg/MultiArrayLayout"]([], 0)
            self._put(topic_name(name), ARRAY, layout=layout, data=numbers)

    def _header(self, frame_id: str) -> Any:
        types = self._messages.types.types
        stamp = types["builtin_interfaces/msg/Time"](*divmod(self._now_ns, SECOND_NS))
        return types["std_msgs/msg/Header"](stamp, frame_id)

    def _put(self, topic: str, kind: str, **fields: Any) -> None:
        types = self._messages.types
        self._put_bytes(topic, bytes(types.serialize_cdr(types.types[kind](**fields), kind)))

    def _put_bytes(self, topic: str, data: bytes) -> None:
        assert self._spool is not None
        self._spool.write(_HEAD.pack(self._numbers[topic], self._now_ns, len(data)) + data)

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._spool = None

    def _take_over(self, folder: Path) -> None:
        """Copies an episode from the journal."""
        with (folder / _MESSAGES).open("rb") as spool:
            while head := spool.read(_HEAD.size):
                number, self._end_ns, length = _HEAD.unpack(head)
                self._writer.write(self._topics[number], self._end_ns, spool.read(length))
        self._count += 1


def _frame_id(camera: str) -> str:
    return camera.removeprefix(IMAGES)


def topic_name(feature: str) -> str:
    """The topic of a feature: / for its dots, and _ for what ROS allows in no name, so that it can be played."""
    parts = (re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[./]+", feature) if part)
    return "".join(f"/_{part}" if part[0].isdigit() else f"/{part}" for part in parts)


def _info(head: LabelHead) -> dict[str, Any]:
    """Fields of v2r_msgs/RewardInfo as far as a recording says them."""
    nan = float("nan")
    return {
        "model_name": head.model,
        "model_sha256": head.model_sha256,
        "encoder": "",
        "embedding_dim": 0,
        "image_size": 0,
        "mean": [nan] * 3,
        "std": [nan] * 3,
        "precision": "",
        "provider": "",
        "device": "",
        "kind": KIND_VALUE if head.reward_kind == "value" else KIND_STEP_REWARD,
        "reward_name": head.reward,
        "reward_scale": nan,
        "reward_clip": nan,
        "discount": nan,
        "uncertainty_threshold": nan,
        "goal_id": "",
        "goal_source": "",
        "subgoal_count": 0,
        "component_names": [],
        "software_version": version("v2r_ros"),
    }
