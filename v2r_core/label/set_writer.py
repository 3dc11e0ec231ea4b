"""The folder of many labels: a table a video, and a list of what is done, which a run that is started again goes by."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar

from pydantic import Field, ValidationError, field_validator

from v2r_core.deploy.folder import Strict
from v2r_core.deploy.stream import Status
from v2r_core.label.complete import complete, remove_halves
from v2r_core.label.video_sources import SET_FILE, FoundSources, VideoSource, find_sources
from v2r_core.rewards.reward import RewardKind

MANIFEST, LABELS, OVERLAYS = "manifest.jsonl", "labels", "overlays"
_LOCK = ".lock"

State = Literal["begun", "done", "failed"]
Looks = tuple[int, int, str]
"""What a video and its labels depend on: its size in bytes, its time of change in ns, and the key of its labels."""


class SetRecord(Strict):
    """What a labelled folder holds: the content of `set.json`.

    Attributes:
        kind: "videos": tables in labels/; "bags": labelled copies under the names of the bags.
        root: absolute folder of what was labelled.
        model: name of the bundle.
        model_sha256: of the bundle.
        reward: vip, uvd, time...
        reward_kind: "value" or "step_reward".
    """

    schema_version: Literal[1] = 1
    kind: Literal["videos", "bags"]
    root: str
    model: str
    model_sha256: str
    reward: str
    reward_kind: RewardKind


class ManifestLine(Strict):
    """What became of a video; the newest line of a video counts.

    Attributes:
        video: its name: the path relative to the root, with /.
        state: "begun" only for bags.
        frames: that were labelled.
        seconds: wall time that it took.
        error: why it failed.
        size: bytes of the video then.
        mtime_ns: when it was changed last, then.
        key: hash of model, reward and goal.
    """

    video: str
    state: State
    frames: int = Field(ge=0)
    seconds: float = Field(ge=0)
    error: str
    size: int
    mtime_ns: int
    key: str

    @field_validator("video")
    @classmethod
    def _stays_inside(cls, video: str) -> str:
        """Files are looked for, and thrown away, under this name."""
        path = PurePosixPath(video)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{video!r} is no path within the folder")
        return video

    @classmethod
    def of(cls, video: str, state: State, frames: int, seconds: float, error: str, looks: Looks) -> ManifestLine:
        """A line; `seconds` are rounded."""
        size, mtime_ns, key = looks
        return cls(
            video=video,
            state=state,
            frames=frames,
            seconds=round(seconds, 3),
            error=error,
            size=size,
            mtime_ns=mtime_ns,
            key=key,
        )

    def says(self, state: State, looks: Looks) -> bool:
        """Whether it says so of a video that looks so."""
        return (self.state, self.size, self.mtime_ns, self.key) == (state, *looks)


@dataclass
class LabelledSet:
    """What came of labelling videos or bags into a folder.

    Attributes:
        record: what the folder holds.
        found: videos or bags that there are.
        kept: of these, done by an earlier run.
        labelled: done by this run.
        failed: name of each that failed in this run, and why.
        left_out: what was not gone into, and why.
        frames: that this run labelled.
        busy_seconds: wall time of all workers together, their start not included.
        cpu_seconds: processor time of all workers together.
        statuses: number of labels of each status.
    """

    record: SetRecord
    found: int = 0
    kept: int = 0
    labelled: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    frames: int = 0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)


class Answer(Protocol):
    """What comes back of a task: `Outcome` or `Done`."""

    @property
    def number(self) -> int: ...


TaskT_co = TypeVar("TaskT_co", covariant=True)
AnswerT_contra = TypeVar("AnswerT_contra", bound=Answer, contravariant=True)
TaskT = TypeVar("TaskT")
AnswerT = TypeVar("AnswerT", bound=Answer)


class SetRun(Protocol[TaskT_co, AnswerT_contra]):
    """Labels on their way into a folder."""

    def has_to_do(self, source: VideoSource) -> bool:
        """Whether a source has to be labelled; counts it if not."""

    def task_of(self, source: VideoSource) -> TaskT_co:
        """What a worker is told."""

    def take(self, source: VideoSource, answer: AnswerT_contra) -> None:
        """Keeps what a worker answered."""


def work_off(
    run: SetRun[TaskT, AnswerT],
    sources: Sequence[VideoSource],
    start: Callable[[list[TaskT]], Generator[AnswerT, None, None]],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Labels all that has to be.

    Args:
        run: what knows how.
        sources: all there are.
        start: starts workers on tasks and gives their answers, in any order.
        on_progress: called with (sources done, sources in all).
    """
    waiting = [source for source in sources if run.has_to_do(source)]
    done = len(sources) - len(waiting)
    with closing(start([run.task_of(source) for source in waiting])) as answers:
        for answer in answers:
            run.take(waiting[answer.number], answer)
            done += 1
            if on_progress is not None:
                on_progress(done, len(sources))


def read_record(out: Path) -> SetRecord | None:
    """What a folder holds; None if `v2r label` has not written it.

    Raises:
        ValueError: its record is damaged, or of another version.
    """
    file = out / SET_FILE
    if not file.is_file():
        return None
    try:
        return SetRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file}: {where or 'file'}: {first['msg']}; label into another folder") from error


def read_manifest(out: Path) -> dict[str, ManifestLine]:
    """The newest line of each video. A line that cannot be read counts as none: that video is labelled again."""
    lines: dict[str, ManifestLine] = {}
    file = out / MANIFEST
    if file.is_file():
        for text in file.read_bytes().splitlines():
            try:
                line = ManifestLine.model_validate_json(text)
            except ValidationError:
                continue
            lines[line.video] = line
    return lines


def shared_root(out: Path, sources: Sequence[Path]) -> Path | None:
    """The root of what `out` holds already, if it is that of these sources too: labels of more of them join it.

    Raises:
        ValueError: see `read_record`.
    """
    there = read_record(out)
    if there is None:
        return None
    paths = (Path(os.path.normpath(path.expanduser().absolute())) for path in sources)
    return Path(there.root) if all(path.is_relative_to(there.root) for path in paths) else None


def find_shared(sources: Sequence[Path], out: Path) -> FoundSources:
    """Finds what there is to label into a folder, under the root of what it holds already if that is shared.

    Raises:
        FileNotFoundError, ValueError: see `find_sources` and `read_record`.
    """
    return find_sources(sources, out, shared_root(out, sources))


class SetWriter:
    """A labelled folder that is being written. Only one process at a time has it.

    Attributes:
        lines: the newest line of each video.
    """

    def __init__(self, out: Path, record: SetRecord, force: bool) -> None:
        """Only names things.

        Args:
            out: the folder.
            record: what it is to hold.
            force: throw away labels of another model or reward that it holds.
        """
        self._out, self._record, self._force = out, record, force
        self.lines: dict[str, ManifestLine] = {}
        self._lock = self._manifest = -1

    def __enter__(self) -> Self:
        """Makes the folder, or goes on with it.

        Raises:
            FileExistsError: another process is at work on it, it holds something else, or labels of another model.
        """
        out = self._out
        if out.exists() and (not out.is_dir() or (read_record(out) is None and any(out.glob("[!.]*")))):
            raise FileExistsError(f"{out} exists and holds no labels; give another name")
        out.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FileExistsError(f"another process is labelling into {out}; wait for it") from error
            self._prepare()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._manifest)
        os.close(self._lock)

    def table(self, name: str) -> Path:
        """Where the labels of a video are."""
        return self._out / LABELS / f"{name}.parquet"

    def overlay(self, name: str) -> Path:
        """Where the overlay video of a video is; what was no mp4 becomes one, beside that of an mp4 of its name."""
        return self._out / OVERLAYS / (name if name.lower().endswith(".mp4") else f"{name}.overlay.mp4")

    def add(self, line: ManifestLine) -> None:
        """Says what became of a video, for this run and for those to come.

        Raises:
            OSError: it cannot be written.
        """
        data = line.model_dump_json().encode() + b"\n"
        while data:
            data = data[os.write(self._manifest, data) :]
        self.lines[line.video] = line

    def _prepare(self) -> None:
        out, wanted, there = self._out, self._record, read_record(self._out)
        if there is not None and (there.kind, there.root) != (wanted.kind, wanted.root):
            raise FileExistsError(f"{out} holds labels of {there.kind} in {there.root}; give another name")
        if there is not None and there != wanted:
            if not self._force:
                raise FileExistsError(
                    f"{out} holds labels of the model {there.model} ({there.model_sha256[:8]}, {there.reward}), not of "
                    f"{wanted.model} ({wanted.model_sha256[:8]}, {wanted.reward}); give another name, or --force to "
                    "throw them away"
                )
            self._empty(there)
        if there != wanted:
            with complete(out / SET_FILE) as half:
                half.write_text(wanted.model_dump_json(indent=2) + "\n")
        remove_halves(out)
        self.lines = read_manifest(out)
        self._manifest = os.open(out / MANIFEST, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        # A run that was killed may have left half a line; the next one must not become its other half.
        os.ftruncate(self._manifest, (out / MANIFEST).read_bytes().rfind(b"\n") + 1)

    def _empty(self, there: SetRecord) -> None:
        """Throws away what it holds; the record of it goes last, when another one takes its place."""
        names = read_manifest(self._out)
        (self._out / MANIFEST).unlink(missing_ok=True)
        for folder in (LABELS, OVERLAYS) if there.kind == "videos" else names:
            shutil.rmtree(self._out / folder, ignore_errors=True)
