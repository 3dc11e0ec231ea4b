"""`v2r label` of videos and of a rosbag: against the bare encoder, with one worker and with two, and its memory."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from benchmarks.offline import write_long_video
from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import DEFAULT_BATCH, Scorer
from v2r_core.label.goals import LAST
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.videos import VideosTask, label_videos
from v2r_core.video import open_video
from v2r_core.video.bag import RAW

ENCODER_BOUND, SCALING_BOUND = 0.9, 1.8


@dataclass(frozen=True)
class Options:
    """What is measured."""

    frames: int = 200
    """Frames of each video, 640x480, H.264."""
    videos: int = 8
    """Videos in the folder, an even number."""
    rounds: int = 3
    """How often each is measured, in turn; medians count."""
    out: Path = Path("out/bench/label.json")
    """File for the numbers."""


@dataclass(frozen=True)
class Run:
    """What labelling the folder took.

    Attributes:
        fps: frames/s while all workers were at work: from when each has labelled its first video.
        cpu_ms: processor time of a frame, all threads of its worker together.
        wall_s: of everything, the start included.
        peak_mb: most memory (RSS) of this process and its workers, less what this process had before.
    """

    fps: float
    cpu_ms: float
    wall_s: float
    peak_mb: float


def bare(scorer: Scorer, frames: int) -> tuple[float, float]:
    """Frames/s, and ms of processor time a frame, of the encoder alone on frames that are prepared."""
    with open_video(CLIPS / "success.mp4") as clip:
        prepared = np.stack([scorer.prepare(clip[index]) for index in range(DEFAULT_BATCH)])
    runs = frames // DEFAULT_BATCH
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(runs):
        scorer.session(prepared)
    count = runs * DEFAULT_BATCH
    return count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e3


def label(folder: Path, options: Options, workers: int, cores: set[int] | None = None) -> Run:
    """Labels the folder, each video towards its own end; the encoder has one thread a worker.

    Args:
        folder: of videos that are all of one length.
        options: how many.
        workers: see `label_all`.
        cores: on which everything has to run; None: on all.
    """
    moments = []
    task = VideosTask((folder,), folder.parent / "labels", LAST)
    start = time.perf_counter()
    with _on(cores), _peak_memory() as peak:
        done = label_videos(
            task,
            LabellerOptions(DEFAULT_BUNDLE, providers=("cpu",)),
            workers,
            on_progress=lambda *_: moments.append(time.perf_counter()),
        )
    wall = time.perf_counter() - start
    shutil.rmtree(task.out)
    if done.failed:
        raise RuntimeError(f"videos that were just written cannot be labelled: {done.failed}")
    # The start of a worker belongs to its first video.
    first = max(workers, 1)
    fps = options.frames * (len(moments) - first) / (moments[-1] - moments[first - 1])
    return Run(fps, done.cpu_seconds / done.frames * 1e3, wall, peak[0])


def write_bag(video: Path, bag: Path) -> None:
    """The frames of a video as raw images at 30 Hz, in an MCAP."""
    types = get_typestore(Stores.ROS2_JAZZY)
    image, header, time_ = (types.types[name] for name in (RAW, "std_msgs/msg/Header", "builtin_interfaces/msg/Time"))
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer, open_video(video) as frames:
        connection = writer.add_connection("/camera/image", RAW, typestore=types)
        for number, frame in enumerate(frames):
            moment = 10**18 + number * 33_333_333
            height, width = frame.shape[:2]
            stamp = header(time_(moment // 10**9, moment % 10**9), "camera")
            message = image(stamp, height, width, "rgb8", 0, 3 * width, frame.reshape(-1))
            writer.write(connection, moment, types.serialize_cdr(message, RAW))


def label_recording(bag: Path) -> float:
    """Images/s of a bag, from its first label to its last."""
    moments: list[float] = []
    out = bag.with_name("labelled")
    bundle = load_bundle(DEFAULT_BUNDLE)
    goal = str(CLIPS / "success.mp4")
    label_bag(BagTask(bag, out, goal=goal), bundle, on_progress=lambda *_: moments.append(time.perf_counter()))
    shutil.rmtree(out)
    # Labels come in groups, and the first group had to wait for the start.
    return (len(moments) - DEFAULT_BATCH) / (moments[-1] - moments[DEFAULT_BATCH - 1])


def measure(options: Options) -> dict[str, object]:
    """All numbers, each the median of rounds in turn."""
    one_core = {min(os.sched_getaffinity(0))}
    scorer = Scorer(load_bundle(DEFAULT_BUNDLE), providers=["cpu"])
    names = ("one process", "one worker", "one worker on one core", "two workers")
    runs: dict[str, list[Run]] = {name: [] for name in names}
    encoder, ratios, scaling, per_core, bags = [], [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "videos"
        folder.mkdir()
        write_long_video(folder / "0.mp4", options.frames)
        for number in range(1, options.videos):
            shutil.copy(folder / "0.mp4", folder / f"{number}.mp4")
        bag = Path(scratch) / "bag"
        write_bag(folder / "0.mp4", bag)
        for _ in range(options.rounds):
            encoder.append(bare(scorer, options.frames * 2))
            found = {
                "one process": label(folder, options, 0),
                "one worker": label(folder, options, 1),
                "one worker on one core": label(folder, options, 1, one_core),
                "two workers": label(folder, options, 2),
            }
            ratios.append(found["one process"].fps / encoder[-1][0])
            scaling.append(found["two workers"].fps / found["one worker"].fps)
            per_core.append(found["two workers"].fps / found["one worker on one core"].fps)
            bags.append(label_recording(bag) / encoder[-1][0])
            for name, run in found.items():
                runs[name].append(run)
    medians = {
        name: {key: statistics.median(asdict(run)[key] for run in each) for key in asdict(each[0])}
        for name, each in runs.items()
    }
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "encoder": {
            "fps": statistics.median(e[0] for e in encoder),
            "cpu_ms": statistics.median(e[1] for e in encoder),
        },
        "runs": medians,
        "over_encoder": statistics.median(ratios),
        "bag_over_encoder": statistics.median(bags),
        "two_workers_over_one": statistics.median(scaling),
        "two_workers_over_one_on_one_core": statistics.median(per_core),
    }


def main(options: Options) -> int:
    """Measures, prints the table, writes the JSON; 1 if a bound is missed."""
    if options.videos < 4 or options.videos % 2:
        raise SystemExit(f"--videos {options.videos}: an even number from 4 on expected")
    found = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    table = Table("", "frames/s", "processor ms a frame", "MB", title="labelling 640x480 video")
    encoder, runs = found["encoder"], found["runs"]
    assert isinstance(encoder, dict)
    assert isinstance(runs, dict)
    table.add_row("the encoder alone", f"{encoder['fps']:.1f}", f"{encoder['cpu_ms']:.1f}", "")
    for name, run in runs.items():
        table.add_row(name, f"{run['fps']:.1f}", f"{run['cpu_ms']:.1f}", f"{run['peak_mb']:.0f}")
    console = Console()
    console.print(table)
    over, bag, scaling = (
        found[name] for name in ("over_encoder", "bag_over_encoder", "two_workers_over_one_on_one_core")
    )
    console.print(
        f"one process over the encoder alone: {over:.2f} for videos, {bag:.2f} for a bag of raw images "
        f"({ENCODER_BOUND} asked); two workers over one that has a "
        f"core: {scaling:.2f} ({SCALING_BOUND} asked), over one that has both: {found['two_workers_over_one']:.2f}; "
        f"{found['cores']} cores, load {found['load']:.1f}"
    )
    return int(min(over, bag) < ENCODER_BOUND or scaling < SCALING_BOUND)


@contextmanager
def _on(cores: set[int] | None) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Gives a list whose only number is the peak in MB, once it is left."""
    me, stop = psutil.Process(), threading.Event()
    before = me.memory_info().rss
    peak = [0.0]

    def watch() -> None:
        while not stop.wait(0.05):
            used = me.memory_info().rss - before
            for child in me.children(recursive=True):
                try:
                    used += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], used / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
