"""Compares our reading and writing of LeRobotDataset v3 with the real `lerobot` package, in an environment of its own.

    python tools/check_lerobot.py PYTHON [DATASET...]

PYTHON is an interpreter that has `lerobot`, which needs another torch than we do. Without a DATASET small ones are
made: one by our writer, its labelled copy, one by the real package, and the labelled copy of that; and the real package
records one more episode into each. Each DATASET is opened by the real `LeRobotDataset`: its frames, numbers, episodes,
tasks and statistics are compared with what we read, and where it has labels, the real weights of reward-weighted
training are computed from them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from v2r_core.label.lerobot import RECORD, DatasetTask, label_dataset
from v2r_core.label.lerobot_copy import PROGRESS
from v2r_core.label.lerobot_stats import QUANTILES
from v2r_core.label.lerobot_writer import LeRobotWriter
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.lerobot_schema import Feature

THEIRS = Path(__file__).with_name("lerobot_side.py")
SHAPE = (48, 64, 3)
MOST_FRAMES = 40
"""Frames of a dataset that are compared."""
PIXEL_TOLERANCE = 3.0
"""Of the mean difference, in levels: two versions of FFmpeg turn YUV into RGB with other roundings."""


def main(python: str, *datasets: str) -> None:
    """Checks datasets, or what it makes itself; raises AssertionError where we and the real package differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dataset in map(Path, datasets):
            check(python, dataset, folder)
        for dataset in () if datasets else make_datasets(python, folder):
            check(python, dataset, folder)
            check_appending(python, dataset)


def make_datasets(python: str, folder: Path) -> list[Path]:
    """Datasets of both writers, and their labelled copies."""
    ours, theirs = write_ours(folder / "ours"), folder / "theirs"
    run_theirs(python, "write", theirs)
    made = []
    for dataset in (ours, theirs):
        labelled = dataset.with_name(dataset.name + "_labelled")
        model = LabellerOptions(write_model(folder / f"model_{dataset.name}"))
        done = label_dataset(DatasetTask(dataset, labelled, camera="observation.images.top"), model)
        assert not done.failed, done.failed
        made += [dataset, labelled]
    return made


def write_ours(folder: Path) -> Path:
    """Three episodes by our writer, with every kind of feature, in several files."""
    from v2r_core.label.lerobot_tables import FileLimits  # noqa: PLC0415

    features = {
        "observation.images.top": Feature(dtype="video", shape=SHAPE, names=["height", "width", "channels"]),
        "observation.state": Feature(dtype="float32", shape=(2,), names=["x", "y"]),
        "action": Feature(dtype="float32", shape=(1,)),
        "grid": Feature(dtype="float32", shape=(2, 3)),
        "note": Feature(dtype="string", shape=(1,)),
        "next.done": Feature(dtype="bool", shape=(1,)),
    }
    limits = FileLimits(2, data_files_size_in_mb=0.01, video_files_size_in_mb=0.003)
    with LeRobotWriter(folder, 10, features, "toy", limits=limits) as writer:
        for episode, length in enumerate((5, 1, 7, 12)):
            for index in range(length):
                writer.add_frame(
                    {
                        "observation.images.top": np.full(SHAPE, 20 + 30 * episode + 5 * index, np.uint8),
                        "observation.state": np.array([index, episode], np.float32),
                        "action": np.float32(index / 7),
                        "grid": np.arange(6, dtype=np.float32).reshape(2, 3) + index,
                        "note": f"frame {index}",
                        "next.done": index == length - 1,
                    }
                )
            writer.save_episode(f"task {episode % 2}")
        writer.finish()
    return folder


def write_model(folder: Path) -> Path:
    """The bundle of the tests, which needs no weights."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "test"))
    from tiny_bundle import write_tiny_bundle  # noqa: PLC0415

    return write_tiny_bundle(folder)


def run_theirs(python: str, verb: str, *arguments: Path | int) -> str:
    """Runs our script in the environment of the real package, which must not look for anything on the network."""
    command = [python, str(THEIRS), verb, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as cache:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": cache, "PYTHONPATH": ""}
        done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{verb} {arguments} with the real package:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def check(python: str, dataset: Path, scratch: Path) -> None:
    """Compares one dataset as the real package reads it with how we read it."""
    out = scratch / "read.npz"
    run_theirs(python, "read", dataset, out, MOST_FRAMES)
    folder = LeRobotFolder.open(dataset)
    with np.load(out, allow_pickle=False) as file:
        theirs = {name: file[name] for name in file.files}
    said = json.loads(str(theirs.pop("said")))
    check_episodes(folder, said)
    check_stats(folder, said["stats"])
    rows = theirs.pop("rows")
    episodes, frames = theirs["episode_index"].astype(int), theirs["frame_index"].astype(int)
    for name, feature in folder.features.items():
        if feature.is_camera:
            check_frames(folder, name, episodes, frames, theirs[f"frames/{name}"])
            continue
        ours = np.array([folder.column(episode, name)[frame] for episode, frame in zip(episodes, frames, strict=True)])
        found = theirs[name].reshape(ours.shape)
        same = (ours.astype(str) == found) if feature.dtype == "string" else np.isclose(ours, found, equal_nan=True)
        assert same.all(), f"{dataset}: {name} differs: {ours} {found}"
    what = [f"{len(rows)} of {said['frames']} frames, {len(folder.features)} features, statistics"]
    if (dataset / RECORD).exists():
        what.append(check_weights(folder, said["weights"]))
    print(f"{dataset.name}: {'; '.join(what)}: as the real package (lerobot {said['version']}) has them")


def check_appending(python: str, dataset: Path) -> None:
    """Has the real package record one more episode, which is what statistics of another shape than its own break."""
    before = LeRobotFolder.open(dataset)
    copy = dataset.with_name(dataset.name + "_longer")
    shutil.copytree(dataset, copy)
    run_theirs(python, "append", copy)
    after = LeRobotFolder.open(copy)
    assert after.episodes == before.episodes + 1
    newest = after.column(before.episodes, "frame_index")
    assert newest.tolist() == [0, 1, 2]
    with after.video(before.episodes, "observation.images.top") as video:
        assert [round(float(frame.mean()) / 50) for frame in video] == [0, 1, 2]
    for episode in range(before.episodes):
        np.testing.assert_array_equal(after.column(episode, "action"), before.column(episode, "action"))
    print(f"{dataset.name}: the real package records one more episode into it")


def check_episodes(folder: LeRobotFolder, said: dict[str, Any]) -> None:
    """Compares what both say of the whole."""
    count = folder.episodes
    assert said["lengths"] == [folder.length(episode) for episode in range(count)]
    assert said["tasks"] == [list(folder.tasks(episode)) for episode in range(count)]
    assert said["fps"] == folder.fps
    assert sorted(said["cameras"]) == sorted(folder.cameras)
    assert said["frames"] == sum(said["lengths"]) == folder.info.total_frames
    assert all(task in said["tasks"][episode] for task, episode in said["row_tasks"]), "tasks of the rows"


def check_stats(folder: LeRobotFolder, stats: dict[str, dict[str, Any]]) -> None:
    """The real package finds statistics of every feature that has numbers, and they are those of the numbers."""
    for name, feature in folder.features.items():
        if feature.is_camera:
            assert np.shape(stats[name]["mean"]) == (3, 1, 1), name
            continue
        if feature.dtype == "string":
            continue
        columns = [folder.column(episode, name) for episode in range(folder.episodes)]
        numbers = np.concatenate(columns).astype(np.float64)
        numbers = numbers.reshape(-1, numbers.shape[-1] if numbers.ndim > 1 else 1)
        if np.isnan(numbers).all():
            assert name not in stats, name
            continue
        assert set(stats[name]) >= {"min", "max", "mean", "std", "count", *QUANTILES}, name
        np.testing.assert_allclose(stats[name]["min"], np.nanmin(numbers, axis=0), err_msg=name)
        np.testing.assert_allclose(stats[name]["max"], np.nanmax(numbers, axis=0), err_msg=name)
        np.testing.assert_allclose(stats[name]["mean"], np.nanmean(numbers, axis=0), 1e-4, 1e-6, err_msg=name)
        np.testing.assert_allclose(stats[name]["std"], np.nanstd(numbers, axis=0), 1e-3, 1e-4, err_msg=name)


def check_frames(folder: LeRobotFolder, camera: str, episodes: Any, frames: Any, theirs: Any) -> None:
    """Compares pictures, float (N, 3, H, W) in [0, 1] on their side."""
    for episode in np.unique(episodes):
        with folder.video(int(episode), camera) as video:
            for place in np.flatnonzero(episodes == episode):
                ours = video[int(frames[place])].astype(np.float64)
                found = theirs[place].transpose(1, 2, 0) * 255
                assert found.shape == ours.shape
                difference = np.abs(found - ours).mean()
                assert difference < PIXEL_TOLERANCE, (
                    f"{camera}, frame {frames[place]} of episode {episode}: {difference}"
                )


def check_weights(folder: LeRobotFolder, weights: dict[str, Any]) -> str:
    """Compares the weights of reward-weighted training with what the progress makes them to be."""
    chunk = weights["chunk"]
    deltas, start = {}, 0
    for episode in range(folder.episodes):
        progress = folder.column(episode, "v2r.progress").astype(np.float64)
        last = len(progress) - 1
        for index, value in enumerate(progress):
            deltas[start + index] = progress[min(index + chunk, last)] - value
        start += len(progress)
    known = np.array([value for value in deltas.values() if not np.isnan(value)])
    np.testing.assert_allclose(weights["delta_mean"], max(known.mean(), 0), rtol=1e-4, atol=1e-6)
    for index, value in zip(weights["index"], weights["raw"], strict=True):
        delta = deltas[index]
        if np.isnan(delta):
            assert value == 1.0, "a frame without progress gets the fallback weight"
        elif delta > weights["kappa"]:
            assert value == 1.0
        elif delta < 0:
            assert value == 0.0
        else:
            assert 0 <= value <= 1.0
    return f"RA-BC weights of {len(weights['index'])} frames from {PROGRESS}"


if __name__ == "__main__":
    main(*sys.argv[1:])
