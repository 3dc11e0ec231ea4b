"""Labels a rosbag2: the same bag with rewards in it.

Two readers go through the bag. One decodes images for the model, the other one copies, and waits behind each image for
its label: decoding, scoring and writing overlap, and no message waits in memory for a label, however late that comes.
"""

from __future__ import annotations

import errno
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from v2r_core.deploy.ahead import ahead
from v2r_core.deploy.bundle import Bundle
from v2r_core.deploy.judging import MAX_STAMP_FUTURE
from v2r_core.deploy.stream import Scorer
from v2r_core.label.bag_task import BagTask, make_scorer
from v2r_core.label.bag_writer import BagFormat, BagWriter, bag_format
from v2r_core.label.cameras import Camera, Viewer
from v2r_core.label.episodes import EpisodeCutter, mark_topic
from v2r_core.label.goals import plan_goals
from v2r_core.label.journal import AnswerJournal
from v2r_core.label.labeller import Label, LabelCounts, Labeller, RecordedImage
from v2r_core.label.messages import NUMBER, REWARD, REWARD_INFO, SECOND_NS, Header, Messages, label_qos, read_header
from v2r_core.label.partial import PartialFolder
from v2r_core.video.bag import choose_connections, open_bag
from v2r_core.video.video import VideoError

LABELS_AHEAD = 1 << 16
"""Labels that may wait for the copy, some hundred bytes each. An episode that is its own goal gets all of them at once;
while they wait, the next one is scored."""
_POLL_S = 0.1


@dataclass(frozen=True)
class LabelledBag:
    """What came of it.

    Attributes:
        counts: the labels.
        topics: of the images, that of the camera that sets the pace first.
        messages: messages of the original that were copied.
        resumed: answers of networks that an interrupted run had got already, and all that were needed.
        scorer: what scored.
    """

    counts: LabelCounts
    topics: tuple[str, ...]
    messages: int
    resumed: tuple[int, int]
    scorer: Scorer


def label_bag(
    task: BagTask,
    bundle: Bundle,
    reward: str | None = None,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    providers: Sequence[str] = ("auto",),
) -> LabelledBag:
    """Writes a copy of a bag with a reward behind every image.

    The copy appears under its name only when it is complete. Until then it lies in a folder `OUT.partial`; a run that
    ends early leaves there what its networks answered, and one that is started again goes on from that.

    Args:
        task: what and how.
        bundle: the model.
        reward: see `Scorer`.
        threads: CPU threads of the encoder.
        on_progress: called with (images labelled, images in all).
        providers: see `choose_providers`.

    Raises:
        VideoError: the bag cannot be read, has no such images (the message says what there is), or a camera has none at
            the times of the first one's.
        FileExistsError: `out` is there already, or another run is at work on it.
        ValueError: goal, episodes or namespace cannot be used.
        OSError: the disk is full, or a file cannot be read or written.
    """
    cameras = task.cameras()
    names = [camera.name for camera in cameras]
    messages = Messages(task.namespace, names if task.camera_progress else ())
    _check_replaceable(task)
    with closing(open_bag(task.bag)) as reader:
        source = _Source(task, cameras, reader, messages)
        with PartialFolder(task.out, task.force, {task.bag}) as partial, _disk_errors(task.out):
            with AnswerJournal(partial.journal, " ".join((bundle.sha256, *providers))) as journal:
                scorer = make_scorer(task, bundle, reward, threads, providers, journal.wrap)
                scorer.set_shape(1.0, None)
                plan = plan_goals(scorer, task.goal, names)
                labeller = Labeller(scorer, plan, messages, task.bag.name, source.start_ns, partial.folder, names)
                writer = BagWriter(partial.product, source.format, reader.connections)
                with _Copy(source, reader, writer) as copy, closing(ahead(source.images(scorer))) as images:
                    for label in labeller.label(images):
                        copy.put(label)
                        if on_progress is not None:
                            on_progress(labeller.counts.images, source.image_count)
            partial.finish()
    resumed = (journal.replayed, journal.replayed + journal.asked)
    return LabelledBag(labeller.counts, source.topics, copy.messages, resumed, scorer)


class _Source:
    """The original.

    Attributes:
        topics: of the images, that of the camera that sets the pace first.
        image_count: image messages, as the bag's index has them.
        start_ns: when its first message was recorded.
        format: how it is stored.
        messages: serialises labels, and knows their topics.
    """

    def __init__(self, task: BagTask, cameras: tuple[Camera, ...], reader: Reader, messages: Messages) -> None:
        chosen = [choose_connections(task.bag, reader.connections, camera.topic) for camera in cameras]
        self._path, self._gap = task.bag, task.gap
        self._cameras, self._max_skew = cameras, task.max_camera_skew
        self.topics = tuple(connections[0].topic for connections in chosen)
        self.image_count = sum(connection.msgcount for connection in chosen[0])
        self.format: BagFormat = bag_format(task.bag)
        self.messages = messages
        self._marks = mark_topic(reader.connections, task.episode_topic)
        own = {messages.reward_topic, messages.info_topic, *messages.progress_topics}
        taken = own & {each.topic for each in reader.connections}
        if taken:
            raise ValueError(f"{task.bag} has {', '.join(sorted(taken))} already; choose another --namespace")
        self.start_ns = next((time for _, time, _ in self.read(reader)), 0)

    def read(self, reader: Reader) -> Iterator[tuple[Connection, int, bytes]]:
        """All messages, their times of recording in nanoseconds, and their bytes."""
        number = 0
        try:
            # Never only those of one topic: messages of the same time must come in the same order in every pass.
            for message in reader.messages():
                yield message
                number += 1
        except Exception as error:  # the reader raises whatever a damaged file leads it to
            raise VideoError(
                f"{self._path}: message {number} cannot be read ({error}); the bag is truncated or damaged, "
                "try `ros2 bag reindex`"
            ) from error

    def images(self, scorer: Scorer) -> Iterator[RecordedImage]:
        """All images of the first camera with what the others saw then, read with a reader of its own.

        As for a live node, the newest image of another camera is the last one that was recorded by then. Images that
        were recorded at the same time, as `v2r convert` writes them, came together, whatever their order.
        """
        cutter = EpisodeCutter(self._gap)
        viewer = Viewer(scorer, self._cameras, self._max_skew)
        numbers = {topic: number for number, topic in enumerate(self.topics)}
        waiting: tuple[str, int, bytes] | None = None  # image of the first camera whose time has not passed
        with closing(open_bag(self._path)) as reader:
            for connection, time_ns, data in self.read(reader):
                camera = numbers.get(connection.topic)
                marks = connection.topic == self._marks and camera != 0
                if waiting is not None and (camera == 0 or marks or time_ns != waiting[1]):
                    yield _image(viewer, cutter, *waiting)
                    waiting = None
                if camera == 0:
                    waiting = connection.msgtype, time_ns, data
                elif camera is not None:
                    viewer.hear(camera, connection.msgtype, data)
                if marks:
                    cutter.mark()
            if waiting is not None:
                yield _image(viewer, cutter, *waiting)
        viewer.check_all_paired()


def _image(viewer: Viewer, cutter: EpisodeCutter, msgtype: str, time_ns: int, data: bytes) -> RecordedImage:
    try:
        header = read_header(data)
    except ValueError:
        header = Header(0, "")
    view, begins = viewer.view(header, msgtype, data), False
    # An image that will be refused decides nothing.
    if view.frames is not None and header.stamp_ns <= time_ns + MAX_STAMP_FUTURE * SECOND_NS:
        begins = cutter.begins(header.stamp_ns or time_ns)
    return RecordedImage(time_ns, header, view.frames, view.problem, view.size, begins)


class _StoppedError(Exception):
    """The labels have ended early."""


class _Copy:
    """Copies the original in a thread of its own, and takes a label for each image from `put`.

    Attributes:
        messages: messages of the original that were copied.
    """

    def __init__(self, source: _Source, reader: Reader, writer: BagWriter) -> None:
        self._source, self._reader, self._writer = source, reader, writer
        self._labels: queue.Queue[Label | None] = queue.Queue(LABELS_AHEAD)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self.messages = 0

    def __enter__(self) -> Self:
        names = self._source.messages
        self._writer.add_topic(names.info_topic, REWARD_INFO, names.types, label_qos(latched=True))
        self._writer.add_topic(names.reward_topic, REWARD, names.types, label_qos(latched=False))
        for topic in names.progress_topics:
            self._writer.add_topic(topic, NUMBER, names.types, label_qos(latched=False))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until the copy is complete; raises what made it fail."""
        try:
            if kind is None:
                self.put(None)
                while self._thread.is_alive():
                    self._thread.join(_POLL_S)
        finally:
            self._stop.set()
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, label: Label | None) -> None:
        """The label of the next image; None after the last one. Raises what made the copy fail."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._labels.put(label, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            self._copy()
            self._writer.close()
        except BaseException as error:  # raised by `put` and `__exit__` in the thread that labels
            self._error = None if isinstance(error, _StoppedError) else error
            self._writer.abort()

    def _copy(self) -> None:
        names, topic = self._source.messages, self._source.topics[0]
        label = self._take()
        if label is None or label.info is None:
            raise VideoError(f"{topic}: no message on this topic; record it again")
        # Whoever plays the bag knows from its start what the rewards will mean.
        self._writer.add(names.info_topic, self._source.start_ns, label.info)
        label = replace(label, info=None)
        changed = VideoError(f"{topic}: images come and go; do not write to a bag while it is read")
        for connection, time_ns, data in self._source.read(self._reader):
            self._writer.copy(connection, time_ns, data)
            self.messages += 1
            if connection.topic != topic:
                continue
            if label is None:
                raise changed
            if label.info is not None:
                self._writer.add(names.info_topic, time_ns, label.info)
            if label.reward is not None:
                self._writer.add(names.reward_topic, time_ns, label.reward)
            for progress_topic, progress in zip(names.progress_topics, label.progress, strict=False):
                self._writer.add(progress_topic, time_ns, progress)
            label = self._take()
        if label is not None:
            raise changed

    def _take(self) -> Label | None:
        while not self._stop.is_set():
            try:
                return self._labels.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        raise _StoppedError


def _check_replaceable(task: BagTask) -> None:
    if task.force and task.out.exists() and not (task.out / "metadata.yaml").is_file():
        raise FileExistsError(f"{task.out} exists and is no bag, so it is not replaced; give another name")


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Says of a full disk what to do about it; SQLite has an error of its own for it."""
    try:
        yield
    except sqlite3.Error as error:
        full = "full" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, _advice(out, str(error))) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(error.errno, _advice(out, error.strerror or "")) from error


def _advice(out: Path, reason: str) -> str:
    return f"{out} cannot be written ({reason}); free space and start again: what was scored is kept"
