"""Rewards in a copy of a LeRobotDataset v3: what changes, what does not, what a killed run leaves, what fails alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_data import (
    LENGTHS,
    SHAPE,
    TOP,
    WRIST,
    add_image_camera,
    edit_info,
    edit_table,
    square_frames,
    write_dataset,
)
from PIL import Image
from tiny_bundle import write_tiny_bundle

from v2r_core.deploy.stream import Status
from v2r_core.label import pool
from v2r_core.label.lerobot import DatasetTask, label_dataset
from v2r_core.label.lerobot_copy import LABELS, NEXT_REWARD, PROGRESS
from v2r_core.label.lerobot_tables import FileLimits
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.video import VideoError, open_video
from v2r_core.video.lerobot import LeRobotFolder

HELPER = Path(__file__).with_name("label_dataset_until_killed.py")
NUMBERS = ("reward", "raw_reward", "value", "progress", "uncertainty")
ALL = (*LABELS, NEXT_REWARD)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes, in several files each."""
    folder = tmp_path_factory.mktemp("original") / "pick"
    write_dataset(folder, frames=square_frames, limits=FileLimits(2, 0.006, 0.001))
    assert len(list(folder.glob("data/*/*.parquet"))) > 1
    assert len(list(folder.glob("videos/*/*/*.mp4"))) > 1
    (folder / "README.md").write_text("What we did.\n")
    (folder / ".cache").mkdir()
    (folder / ".cache/lock").touch()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def labelled(original: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "pick_labelled"
    before = digests(original)
    done = label_dataset(DatasetTask(original, out), LabellerOptions(model))
    assert (done.episodes, done.frames, done.resumed, done.failed) == (4, sum(LENGTHS), 0, {})
    assert (done.camera, done.reward, done.features) == (TOP, "vip", ALL)
    assert digests(original) == before
    return out


def digests(folder: Path) -> dict[str, str]:
    """Of every file: its bytes, and those of no other one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_labels_are_those_of_the_episodes_as_videos(original: Path, model: Path, labelled: Path) -> None:
    folder = LeRobotFolder.open(labelled)
    labeller = VideoLabeller(LabellerOptions(model))
    for episode, length in enumerate(LENGTHS):
        expected = labeller.label(VideoTask(f"{original}#{episode}/{TOP}", "x", "last"))
        assert len(expected) == length
        for name in NUMBERS:
            found = folder.column(episode, f"v2r.{name}")
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, getattr(expected.curve, name), rtol=1e-6)
        np.testing.assert_array_equal(folder.column(episode, "v2r.status"), expected.status)
        for name in ("subgoal_index", "subgoal_count"):
            np.testing.assert_array_equal(folder.column(episode, f"v2r.{name}"), getattr(expected.curve, name))
        reward = folder.column(episode, "v2r.reward")
        np.testing.assert_array_equal(folder.column(episode, NEXT_REWARD), [*reward[1:], np.nan])
    values = folder.column(0, "v2r.value")
    assert values[-1] > values[0]
    assert folder.column(3, "v2r.progress")[-1] > 0.9


def test_everything_else_stays(original: Path, labelled: Path) -> None:
    before, after = digests(original), digests(labelled)
    rewritten = {
        name
        for name in before
        if name.startswith(("data/", "meta/episodes/")) or name in ("meta/info.json", "meta/stats.json")
    }
    assert set(after) == set(before) - {".cache/lock"} | {PROGRESS, "meta/v2r_labels.json"}
    assert {name for name in after if name in before and after[name] != before[name]} == rewritten
    for name in sorted(rewritten):
        if name.endswith(".parquet"):
            old, new = (pq.read_table(folder / name, partitioning=None) for folder in (original, labelled))
            assert new.select(old.column_names).equals(old), name
            groups = [pq.ParquetFile(folder / name).num_row_groups for folder in (original, labelled)]
            assert groups[0] == groups[1]
    old, new = (json.loads((folder / "meta/info.json").read_text()) for folder in (original, labelled))
    assert set(new["features"]) - set(old["features"]) == set(ALL)
    assert new | {"features": None} == old | {"features": None}
    assert {name: new["features"][name] for name in old["features"]} == old["features"]
    video = next(original.glob("videos/*/*/*.mp4"))
    assert (labelled / video.relative_to(original)).samefile(video), "videos take no space a second time"
    for name in ("README.md", "meta/tasks.parquet"):
        assert not (labelled / name).samefile(original / name), "who changes the copy must not change the original"


def test_videos_are_copied_where_they_cannot_be_linked(
    original: Path, model: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    label_dataset(DatasetTask(original, tmp_path / "out"), LabellerOptions(model))
    assert digests(tmp_path / "out") == digests(labelled)
    video = next(original.glob("videos/*/*/*.mp4"))
    assert not (tmp_path / "out" / video.relative_to(original)).samefile(video)


def test_datasets_that_are_links_into_a_cache(original: Path, model: Path, labelled: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    for path in original.rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(original)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    label_dataset(DatasetTask(snapshot, tmp_path / "out"), LabellerOptions(model))
    assert digests(tmp_path / "out") == digests(labelled)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_the_columns_are_known_to_datasets(labelled: Path) -> None:
    for path in labelled.glob("data/*/*.parquet"):
        schema = pq.read_schema(path)
        known = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert set(known) == set(schema.names)
        assert known["v2r.reward"] == {"dtype": "float32", "_type": "Value"}
        assert known["v2r.status"] == known["v2r.subgoal_index"] == {"dtype": "int64", "_type": "Value"}


def test_statistics(labelled: Path) -> None:
    folder = LeRobotFolder.open(labelled)
    stats = json.loads((labelled / "meta/stats.json").read_text())
    rows = pd.concat([pd.read_parquet(path) for path in sorted(labelled.glob("meta/episodes/*/*.parquet"))])
    for name in ("v2r.value", "v2r.reward", "v2r.progress", NEXT_REWARD):
        every = np.concatenate([folder.column(episode, name) for episode in range(4)]).astype(np.float64)
        every = every[~np.isnan(every)]
        assert stats[name]["count"] == [len(every)]
        np.testing.assert_allclose(stats[name]["mean"], [every.mean()], rtol=1e-6)
        np.testing.assert_allclose(stats[name]["std"], [every.std()], rtol=1e-6)
        np.testing.assert_allclose(stats[name]["max"], [every.max()], rtol=1e-6)
        first = folder.column(0, name).astype(np.float64)
        np.testing.assert_allclose(rows[f"stats/{name}/mean"].iloc[0], [np.nanmean(first)], rtol=1e-6)
    assert stats["v2r.status"]["count"] == [sum(LENGTHS)]
    # An episode of one frame has no reward.
    assert rows["stats/v2r.reward/count"].iloc[1].tolist() == [0]
    assert "NaN" not in (labelled / "meta/stats.json").read_text()


def test_progress_for_reward_weighted_training(labelled: Path) -> None:
    folder = LeRobotFolder.open(labelled)
    table = pd.read_parquet(labelled / PROGRESS)
    assert table.columns.tolist() == ["index", "episode_index", "frame_index", "progress_sparse"]
    assert table["index"].tolist() == list(range(sum(LENGTHS)))
    np.testing.assert_array_equal(table["episode_index"], np.repeat(np.arange(4), LENGTHS))
    progress = np.concatenate([folder.column(episode, "v2r.progress") for episode in range(4)])
    np.testing.assert_array_equal(table["progress_sparse"].to_numpy(), progress)
    assert pq.read_schema(labelled / PROGRESS).metadata == {b"reward_model_path": b"tiny"}


def test_record(labelled: Path) -> None:
    record = json.loads((labelled / "meta/v2r_labels.json").read_text())
    assert len(record.pop("model_sha256")) == 64
    assert record == {
        "schema_version": 1,
        "camera": TOP,
        "model": "tiny",
        "reward": "vip",
        "reward_kind": "value",
        "goal_source": "last",
    }


def test_labelled_datasets_are_not_labelled_again(labelled: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has labels already"):
        label_dataset(DatasetTask(labelled, tmp_path / "out"), LabellerOptions(model))


def test_cameras(tmp_path: Path, model: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (6, 5), square_frames)
    add_image_camera(folder, WRIST, lambda episode, length: square_frames(episode, length)[::-1])
    with pytest.raises(VideoError, match=f"choose one of {TOP}, {WRIST}"):
        label_dataset(DatasetTask(folder, tmp_path / "out"), LabellerOptions(model))
    with pytest.raises(VideoError, match="no camera 'side'"):
        label_dataset(DatasetTask(folder, tmp_path / "out", camera="side"), LabellerOptions(model))
    label_dataset(DatasetTask(folder, tmp_path / "out", camera=WRIST), LabellerOptions(model))
    expected = VideoLabeller(LabellerOptions(model)).label(VideoTask(f"{folder}#1/{WRIST}", "x", "last"))
    found = LeRobotFolder.open(tmp_path / "out").column(1, "v2r.value")
    np.testing.assert_allclose(found, expected.curve.value, rtol=1e-6)
    with open_video(f"{tmp_path / 'out'}#1/{WRIST}") as new, open_video(f"{folder}#1/{WRIST}") as old:
        for index in range(5):
            np.testing.assert_array_equal(new[index], old[index])
    assert json.loads((tmp_path / "out/meta/v2r_labels.json").read_text())["camera"] == WRIST


def test_one_goal_for_all(original: Path, model: Path, tmp_path: Path) -> None:
    goal = tmp_path / "goal.png"
    Image.fromarray(square_frames(0, 9)[4]).save(goal)
    label_dataset(DatasetTask(original, tmp_path / "out", goal=str(goal)), LabellerOptions(model))
    expected = VideoLabeller(LabellerOptions(model)).label(VideoTask(f"{original}#2", "x", str(goal)))
    found = LeRobotFolder.open(tmp_path / "out").column(2, "v2r.value")
    np.testing.assert_allclose(found, expected.curve.value, rtol=1e-6)
    assert int(found.argmax()) == 4


def test_table_of_goals(original: Path, model: Path, tmp_path: Path) -> None:
    for number in (0, 8):
        Image.fromarray(square_frames(0, 9)[number]).save(tmp_path / f"goal_{number}.png")
    table = tmp_path / "goals.csv"
    table.write_text("episode,goal\n0,goal_0.png\n2,goal_8.png\n")
    done = label_dataset(DatasetTask(original, tmp_path / "out", goal=str(table)), LabellerOptions(model))
    assert done.without_goal == (1, 3)
    assert done.failed == {}
    folder = LeRobotFolder.open(tmp_path / "out")
    assert int(folder.column(0, "v2r.value").argmax()) == 0
    assert int(folder.column(2, "v2r.value").argmax()) == 8
    assert np.isnan(folder.column(3, "v2r.value")).all()
    assert set(folder.column(3, "v2r.status").tolist()) == {Status.NO_GOAL}
    progress = pd.read_parquet(tmp_path / "out" / PROGRESS)
    assert len(progress) == sum(LENGTHS)
    assert progress["progress_sparse"][progress["episode_index"] == 3].isna().all()
    table.write_text("episode,goal\n4,goal_0.png\n")
    with pytest.raises(ValueError, match=r"episode 4 has a goal, but .* has 4 episodes"):
        label_dataset(DatasetTask(original, tmp_path / "two", goal=str(table)), LabellerOptions(model))
    assert not list(tmp_path.glob("two*"))


def test_rewards_that_are_there_stay_unless_asked(tmp_path: Path, model: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (6, 5), square_frames)
    data = folder / "data/chunk-000/file-000.parquet"
    edit_table(data, lambda table: table.append_column(NEXT_REWARD, pa.array(np.arange(11.0), pa.float64())))
    edit_info(
        folder, lambda info: info["features"].update({NEXT_REWARD: {"dtype": "float64", "shape": [1], "names": None}})
    )
    done = label_dataset(DatasetTask(folder, tmp_path / "kept"), LabellerOptions(model))
    assert done.features == tuple(LABELS)
    np.testing.assert_array_equal(LeRobotFolder.open(tmp_path / "kept").column(1, NEXT_REWARD), np.arange(6.0, 11))
    task = DatasetTask(folder, tmp_path / "replaced", replace_reward=True)
    assert label_dataset(task, LabellerOptions(model)).features == ALL
    new = LeRobotFolder.open(tmp_path / "replaced")
    assert new.features[NEXT_REWARD].dtype == "float32"
    np.testing.assert_array_equal(new.column(1, NEXT_REWARD)[:-1], new.column(1, "v2r.reward")[1:])
    assert pq.read_schema(tmp_path / "replaced/data/chunk-000/file-000.parquet").names.count(NEXT_REWARD) == 1


def test_a_bad_episode_fails_alone(original: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pick"
    shutil.copytree(original, folder)
    whole = LeRobotFolder.open(folder)
    bad = whole.video_file(3, TOP)
    broken = [episode for episode in range(4) if whole.video_file(episode, TOP) == bad]
    assert 0 not in broken
    bad.write_bytes(bad.read_bytes()[:-400])
    seen: list[tuple[int, int]] = []
    done = label_dataset(
        DatasetTask(folder, tmp_path / "out"), LabellerOptions(model), on_progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(done.failed) == broken
    assert "truncated" in done.failed[3]
    new = LeRobotFolder.open(tmp_path / "out")
    for name in NUMBERS:
        assert np.isnan(new.column(3, f"v2r.{name}")).all()
    assert set(new.column(3, "v2r.status").tolist()) == {Status.INTERNAL_ERROR}
    assert np.isfinite(new.column(0, "v2r.value")).all()
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    good = [new.column(episode, "v2r.value") for episode in range(4) if episode not in broken]
    np.testing.assert_allclose(stats["v2r.value"]["mean"], [np.concatenate(good).astype(np.float64).mean()], rtol=1e-6)
    assert stats["v2r.value"]["count"] == [sum(map(len, good))]


def test_a_dataset_without_the_numbers_of_its_frames(tmp_path: Path, model: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (4,), square_frames)
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda table: table.drop_columns("index"))
    with pytest.raises(VideoError, match=r"file-000\.parquet: no column 'index'"):
        label_dataset(DatasetTask(folder, tmp_path / "out"), LabellerOptions(model))
    assert not (tmp_path / "out").exists()


def test_when_all_fail_nothing_is_made(tmp_path: Path, model: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (4,), square_frames)
    next(folder.rglob("*.mp4")).unlink()
    with pytest.raises(ValueError, match=r"no episode could be labelled; episode 0: .*missing"):
        label_dataset(DatasetTask(folder, tmp_path / "out"), LabellerOptions(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pick"]


def test_two_workers_give_the_same(original: Path, model: Path, labelled: Path, tmp_path: Path) -> None:
    label_dataset(DatasetTask(original, tmp_path / "pick_labelled"), LabellerOptions(model), workers=2)
    assert digests(tmp_path / "pick_labelled") == digests(labelled)


@pytest.mark.parametrize("inside", ["pick/labelled", "pick"])
def test_the_original_is_never_touched(tmp_path: Path, model: Path, inside: str) -> None:
    folder = write_dataset(tmp_path / "pick", (3,), square_frames)
    before = digests(folder)
    with pytest.raises(ValueError, match="overlap"):
        label_dataset(DatasetTask(folder, tmp_path / inside, force=True), LabellerOptions(model))
    assert digests(folder) == before


def test_wrong_models_and_goals_are_found_before_the_work(original: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        label_dataset(DatasetTask(original, tmp_path / "out", goal="nothing.png"), LabellerOptions(model))
    with pytest.raises(ValueError, match="bundle"):
        label_dataset(DatasetTask(original, tmp_path / "out"), LabellerOptions(tmp_path))
    assert list(tmp_path.iterdir()) == []


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Has labelling stop after so many episodes, as a killed run does."""
    whole = pool.label_all

    def label_some(*arguments) -> Iterator[pool.Outcome]:
        for number, outcome in enumerate(whole(*arguments)):
            if number == after:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(pool, "label_all", label_some)


def test_what_was_labelled_is_kept_unless_it_is_stale(
    original: Path, model: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pick_labelled"
    with monkeypatch.context() as patch:
        stopping(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            label_dataset(DatasetTask(original, out), LabellerOptions(model))
    assert not out.exists()
    kept = list((tmp_path / "pick_labelled.partial").rglob("episode-*.parquet"))
    assert len(kept) == 2
    # Another goal: what is there must not be used, and stays for the first one.
    goal = tmp_path / "goal.png"
    Image.fromarray(square_frames(0, 9)[4]).save(goal)
    with monkeypatch.context() as patch:
        stopping(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            label_dataset(DatasetTask(original, out, goal=str(goal)), LabellerOptions(model))
    assert len(list((tmp_path / "pick_labelled.partial").rglob("episode-*.parquet"))) == 3
    # The goal's file holds another picture now.
    Image.fromarray(square_frames(0, 9)[8]).save(goal)
    with monkeypatch.context() as patch:
        stopping(patch, after=0)
        with pytest.raises(KeyboardInterrupt):
            label_dataset(DatasetTask(original, out, goal=str(goal)), LabellerOptions(model))
    # A table that a crash has cut off is made again.
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    done = label_dataset(DatasetTask(original, out), LabellerOptions(model))
    assert done.resumed == 1
    assert digests(out) == digests(labelled)
    assert not (tmp_path / "pick_labelled.partial").exists()


def test_another_model_is_not_taken_for_the_first(
    original: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            label_dataset(DatasetTask(original, tmp_path / "out"), LabellerOptions(model))
    other = write_tiny_bundle(tmp_path / "other", "vip", scale=0.5)
    assert label_dataset(DatasetTask(original, tmp_path / "out"), LabellerOptions(other)).resumed == 0


def start(*arguments: Path | str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, HELPER, *arguments, ""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n", process.communicate()[1]
    return process


def check_kills(tmp_path: Path, model: Path, count: int) -> None:
    lengths = (30,) * 30
    dataset = write_dataset(tmp_path / "pick", lengths, square_frames, limits=FileLimits(3, 0.02, 0.002))
    before = digests(dataset)
    process = start(dataset, tmp_path / "whole", model)
    began = time.monotonic()
    assert process.communicate(timeout=60)[0] == "0\n"
    seconds = time.monotonic() - began
    whole = digests(tmp_path / "whole")
    moments = random.Random(count)
    killed = resumed = 0
    for number in range(count):
        out = tmp_path / f"labelled_{number}"
        process = start(dataset, out, model)
        # Spread over the run, which may have more of the machine now than the one that was timed.
        time.sleep((number + moments.random()) / count * 0.8 * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # it was just ready
            assert digests(out) == whole
            continue
        assert digests(dataset) == before
        killed += 1
        text, errors = start(dataset, out, model).communicate(timeout=60)
        assert not errors
        resumed += int(text) > 0
        assert digests(out) == whole
        assert not out.with_name(out.name + ".partial").exists()
    assert killed >= count // 2
    assert resumed >= killed // 3, "some runs must have gone on from something"


def test_killed_at_random_moments(tmp_path: Path, model: Path) -> None:
    check_kills(tmp_path, model, 1)


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(tmp_path: Path, model: Path) -> None:
    check_kills(tmp_path, model, 20)


def test_frames_of_other_sizes_than_said_do_not_matter(tmp_path: Path, model: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (3,), square_frames)
    edit_info(folder, lambda info: info["features"][TOP].update(shape=[2 * SHAPE[0], 2 * SHAPE[1], 3]))
    assert label_dataset(DatasetTask(folder, tmp_path / "out"), LabellerOptions(model)).failed == {}


@pytest.mark.skipif(
    not os.environ.get("V2R_LEROBOT_PYTHON"),
    reason="V2R_LEROBOT_PYTHON names no interpreter that has the real lerobot package",
)
def test_the_real_package_reads_what_we_write_and_we_what_it_writes() -> None:
    check = Path(__file__).parents[2] / "tools/check_lerobot.py"
    done = subprocess.run(
        [sys.executable, check, os.environ["V2R_LEROBOT_PYTHON"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("as the real package") == 4
    assert done.stdout.count("RA-BC weights") == 2
    assert done.stdout.count("records one more episode") == 4
