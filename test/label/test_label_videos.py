"""A folder of videos and its labels: what is found, what is done again and what is not, and what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clip_writer import numbered, write_video
from killing import deadly
from PIL import Image
from recordings import images, square_frames, write_bag
from tiny_bundle import write_tiny_bundle
from toy_rewards import write_learned_bundle

from v2r_core.label.set_writer import MANIFEST, ManifestLine, SetWriter, read_manifest, read_record
from v2r_core.label.table import read_labels
from v2r_core.label.video_goals import VideoGoals
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.label.videos import LabelledVideos, VideosTask, label_videos, set_record
from v2r_core.video.source import open_video

HELPER = Path(__file__).with_name("label_videos_until_killed.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """1.mp4, 2.mp4, 10.mp4, sub/a.mp4."""
    root = tmp_path / "videos"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(["1.mp4", "2.mp4", "10.mp4", "sub/a.mp4"]):
        write_video(root / name, count=20 + number)
    return root


@pytest.fixture
def label(tmp_path: Path, folder: Path, tiny_bundle: Path):
    def call(*sources: Path, workers: int = 0, model: Path = tiny_bundle, reward: str | None = None, **options):
        task = VideosTask(sources or (folder,), options.pop("out", tmp_path / "out"), **options)
        return label_videos(task, LabellerOptions(model, reward), workers)

    return call


def tables(out: Path) -> dict[str, dict]:
    """All that tables say, by their names, and no other file is among them."""
    found = {}
    for path in sorted((out / "labels").rglob("*")):
        if path.is_file():
            labels = read_labels(path)
            columns = {name: column.tobytes() for name, column in vars(labels.curve).items()}
            rest = {"origin": labels.origin, "stamps": labels.stamps.tobytes(), "status": labels.status.tobytes()}
            found[path.relative_to(out / "labels").as_posix()] = columns | rest
    return found


def counts(done: LabelledVideos) -> tuple[int, int, int]:
    return done.kept, done.labelled, len(done.failed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder(label, folder: Path, tmp_path: Path, tiny_bundle: Path, workers: int) -> None:
    out, ticks = tmp_path / "out", []
    task = VideosTask((folder,), out)
    done = label_videos(task, LabellerOptions(tiny_bundle), workers, on_progress=lambda *now: ticks.append(now))
    assert counts(done) == (0, 4, 0)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(tables(out)) == ["1.mp4.parquet", "10.mp4.parquet", "2.mp4.parquet", "sub/a.mp4.parquet"]
    assert not (out / "overlays").exists()
    alone = VideoLabeller(LabellerOptions(tiny_bundle))
    labels = read_labels(out / "labels" / "sub" / "a.mp4.parquet")
    expected = alone.label(VideoTask(str(folder / "sub" / "a.mp4"), "sub/a.mp4"))
    assert labels.origin == expected.origin
    np.testing.assert_allclose(labels.curve.reward, expected.curve.reward, rtol=1e-6)
    assert json.loads((out / "set.json").read_text()) == {
        "schema_version": 1,
        "kind": "videos",
        "root": str(folder),
        "model": "tiny",
        "model_sha256": expected.origin.model_sha256,
        "reward": "vip",
        "reward_kind": "value",
    }
    lines = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    assert sorted(line["video"] for line in lines) == ["1.mp4", "10.mp4", "2.mp4", "sub/a.mp4"]
    for line in lines:
        stat = (folder / line["video"]).stat()
        assert (line["state"], line["error"]) == ("done", "")
        assert (line["size"], line["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
    assert [line["frames"] for line in lines if line["video"] == "sub/a.mp4"] == [23]
    assert (done.frames, done.video_seconds) == (86, pytest.approx(86 / 30))
    assert done.busy_seconds > 0
    assert done.cpu_seconds > 0
    if workers == 0:
        assert [line["video"] for line in lines] == ["1.mp4", "2.mp4", "10.mp4", "sub/a.mp4"], "natural order"


def test_what_is_a_video(label, folder: Path, tmp_path: Path) -> None:
    """Everything that `open_video` opens, as far as it is clear that it is one; and nothing that we wrote ourselves."""
    for number in range(3):
        frames = folder / "frames" / f"{number}.png"
        frames.parent.mkdir(exist_ok=True)
        Image.fromarray(numbered(number)).save(frames)
        Image.fromarray(numbered(number)).save(folder / "sub" / f"thumbnail_{number}.png")
    write_bag(folder / "runs" / "run1", images(square_frames(15)))
    shutil.copy(folder / "1.mp4", folder / ".hidden.mp4")
    (folder / "notes.txt").write_text("x")
    (folder / "upper").mkdir()
    shutil.copy(folder / "1.mp4", folder / "upper" / "B.MP4")
    (folder / "upper" / "loop").symlink_to(folder)
    (folder / "dataset" / "meta").mkdir(parents=True)
    (folder / "dataset" / "meta" / "info.json").write_text("{}")
    shutil.copy(folder / "1.mp4", folder / "dataset" / "file-000.mp4")
    out = folder / "out"
    done = label(out=out, overlay=True)
    assert done.failed == {}
    expected = ["1.mp4", "2.mp4", "10.mp4", "frames", "runs/run1", "sub/a.mp4", "upper/B.MP4"]
    assert list(read_manifest(out)) == expected
    assert done.left_out == {str(folder / "dataset"): "a LeRobotDataset; label it by itself"}
    assert (out / "overlays" / "frames.overlay.mp4").is_file()
    assert (out / "overlays" / "upper" / "B.MP4").is_file()
    assert len(read_labels(out / "labels" / "runs" / "run1.parquet")) == 15
    assert counts(label(out=out, overlay=True)) == (7, 0, 0)
    other = label(out=tmp_path / "other")
    assert other.found == 7, "neither the labels that lie in the folder nor their overlays"


def test_a_list_of_videos(label, folder: Path, tmp_path: Path) -> None:
    """Its root is the folder that they share; more videos of that root join the labels that there are."""
    out = tmp_path / "out"
    assert counts(label(folder / "2.mp4", folder / "sub")) == (0, 2, 0)
    assert sorted(tables(out)) == ["2.mp4.parquet", "sub/a.mp4.parquet"]
    assert counts(label(folder / "sub" / "a.mp4")) == (1, 0, 0)
    assert counts(label(folder / "1.mp4", folder / "1.mp4")) == (0, 1, 0)
    assert counts(label()) == (3, 1, 0)
    with pytest.raises(FileExistsError, match="holds labels of videos in"):
        label(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_stop_nothing_and_are_tried_again(label, folder: Path, tmp_path: Path, workers: int) -> None:
    whole = (folder / "2.mp4").read_bytes()
    (folder / "2.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "3.mp4").touch()
    done = label(workers=workers)
    assert counts(done) == (0, 3, 2)
    assert "2.mp4" in done.failed["2.mp4"]
    assert "truncated" in done.failed["2.mp4"]
    lines = read_manifest(tmp_path / "out")
    assert (lines["3.mp4"].state, lines["3.mp4"].error) == ("failed", done.failed["3.mp4"])
    (folder / "2.mp4").write_bytes(whole)
    assert counts(label(workers=workers)) == (3, 1, 1)


def test_what_has_changed_is_done_again(label, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label()
    write_video(folder / "1.mp4", count=33)
    assert counts(label()) == (3, 1, 0)
    assert len(read_labels(out / "labels" / "1.mp4.parquet")) == 33
    (out / "labels" / "2.mp4.parquet").unlink()
    assert counts(label()) == (3, 1, 0)
    assert counts(label(overlay=True)) == (0, 4, 0), "the overlays are missing"
    assert counts(label()) == (4, 0, 0)
    (folder / "1.mp4").write_bytes(b"")
    assert counts(label()) == (3, 0, 1)
    assert not (out / "labels" / "1.mp4.parquet").exists(), "no labels of what is no longer there"
    assert not (out / "overlays" / "1.mp4").exists()


def test_overlays_are_those_of_the_labels(label, folder: Path, tmp_path: Path) -> None:
    """They are not kept when labels change without them: later they would be taken for those of the new labels."""
    out, goal = tmp_path / "out", tmp_path / "goal.png"
    Image.fromarray(numbered(7)).save(goal)
    label(overlay=True)
    assert counts(label(goal=str(goal))) == (0, 4, 0)
    assert not list((out / "overlays").rglob("*.mp4"))
    assert counts(label(goal=str(goal), overlay=True)) == (0, 4, 0)
    assert len(list((out / "overlays").rglob("*.mp4"))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_stay_when_only_the_overlay_fails(label, folder: Path, tmp_path: Path, workers: int) -> None:
    """On a full disk a run that adds overlays must not cost the labels that there are."""
    label()
    before = tables(tmp_path / "out")
    (tmp_path / "out" / "overlays").touch()
    done = label(overlay=True, workers=workers)
    assert counts(done) == (0, 0, 4)
    assert "overlays" in done.failed["1.mp4"]
    assert tables(tmp_path / "out") == before
    (tmp_path / "out" / "overlays").unlink()
    assert counts(label()) == (4, 0, 0)


def test_a_video_beside_the_folder_of_its_frames(label, folder: Path, tmp_path: Path) -> None:
    (folder / "1").mkdir()
    for number in range(3):
        Image.fromarray(numbered(number)).save(folder / "1" / f"{number}.png")
    label(overlay=True)
    overlays = tmp_path / "out" / "overlays"
    with open_video(overlays / "1.mp4") as video, open_video(overlays / "1.overlay.mp4") as frames:
        assert (len(video), len(frames)) == (20, 3)


def test_names_that_are_no_text(label, folder: Path) -> None:
    strange = os.fsencode(folder) + b"/caf\xe9.mp4"
    shutil.copy(folder / "1.mp4", strange)
    done = label()
    assert counts(done) == (0, 4, 0)
    assert done.left_out == {f"{folder}/caf\ufffd.mp4": "its name is no UTF-8; rename it"}
    with pytest.raises(ValueError, match="no UTF-8; rename it"):
        label(Path(os.fsdecode(strange)))


def test_goals(label, folder: Path, tmp_path: Path) -> None:
    out, goal = tmp_path / "out", tmp_path / "goal.png"
    Image.fromarray(numbered(7)).save(goal)
    label()
    assert counts(label(goal="last")) == (4, 0, 0), "a model without a goal takes the end"
    assert counts(label(goal=str(goal))) == (0, 4, 0)
    assert read_labels(out / "labels" / "1.mp4.parquet").origin.goal_source == str(goal)
    assert counts(label(goal=str(goal))) == (4, 0, 0)
    Image.fromarray(numbered(8)).save(goal)
    assert counts(label(goal=str(goal))) == (0, 4, 0), "the same file holds another goal"


def test_a_table_of_goals(label, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(numbered(7)).save(tmp_path / "a.png")
    table = tmp_path / "goals.csv"
    rows = ["video, goal", "*, last", "1*, a.png", "10.mp4, last", "sub/*, videos/2.mp4", "nowhere/*, last"]
    table.write_text("\n".join(rows))
    done = label(goal=str(table))
    assert counts(done) == (0, 4, 0)
    assert done.unused_goals == ["nowhere/*"]
    found = {name: labels["origin"].goal_source for name, labels in tables(tmp_path / "out").items()}
    assert found == {
        "1.mp4.parquet": str(tmp_path / "a.png"),
        "2.mp4.parquet": "last",
        "10.mp4.parquet": "last",
        "sub/a.mp4.parquet": str(folder / "2.mp4"),
    }
    rows[1], rows[4] = "2.mp4, last", "x, last"
    table.write_text("\n".join(rows))
    done = label(goal=str(table))
    assert counts(done) == (3, 0, 1)
    assert done.failed["sub/a.mp4"].startswith(f"no goal for it in {table}")


def test_names_that_look_like_patterns() -> None:
    goals = VideoGoals({"a[1].mp4": "x", "b[1].mp4": "y", "c?.mp4": "z"}, "other", "goals.csv")
    assert [goals.of(name) for name in ("a[1].mp4", "b1.mp4", "c1.mp4", "d.mp4")] == ["x", "y", "z", "other"]
    assert goals.unused(["a[1].mp4", "b1.mp4"]) == ["c?.mp4"]


def test_a_row_for_each_of_many_videos() -> None:
    names = [f"{number}.mp4" for number in range(20_000)]
    goals = VideoGoals(dict.fromkeys(names, "last"), None, "goals.csv")
    start = time.process_time()
    assert {goals.of(name) for name in names} == {"last"}
    assert goals.unused(names) == []
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("episode,goal\n0,last", r"columns \['episode', 'goal'\]"),
        ("video,goal\na,last\na,last", "line 3: a has a goal already"),
        ("video,goal\n,last", "line 2: no video"),
        ("video,goal\na,", "line 2: no goal"),
        ("video,goal\na,nothing.png", r"line 2: .*nothing\.png: no such goal"),
    ],
)
def test_tables_that_are_none(label, tmp_path: Path, rows: str, text: str) -> None:
    (tmp_path / "goals.csv").write_text(rows)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        label(goal=str(tmp_path / "goals.csv"))
    assert not (tmp_path / "out").exists()


def test_refusals_leave_nothing(label, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video in it"):
        label(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nothing"):
        label(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such goal"):
        label(goal="nothing.png")
    with pytest.raises(ValueError, match="compares with no goal"):
        label(goal="last", model=write_learned_bundle(tmp_path / "viper", "viper"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is to be read and written"):
        label(out=folder)
    with pytest.raises(FileExistsError, match="holds no labels"):
        label(folder / "1.mp4", out=folder / "sub")
    assert not (folder / "labels").exists()


def test_labels_of_another_model_stay_unless_forced(label, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(overlay=True)
    before = tables(out)
    with pytest.raises(FileExistsError, match=r"labels of the model tiny .*--force"):
        label(reward="uvd")
    other = write_tiny_bundle(tmp_path / "other", "vip", threshold=2.0)
    with pytest.raises(FileExistsError, match="--force"):
        label(model=other)
    assert tables(out) == before
    assert counts(label(folder / "1.mp4", reward="uvd", force=True)) == (0, 1, 0)
    assert sorted(tables(out)) == ["1.mp4.parquet"], "nothing of the other model is left"
    assert not (out / "overlays").exists()
    record = read_record(out)
    assert record is not None
    assert record.reward == "uvd"
    assert counts(label(folder / "1.mp4", reward="uvd", force=True)) == (1, 0, 0)


def test_a_list_that_names_what_is_not_in_the_folder(tmp_path: Path, tiny_bundle: Path) -> None:
    """Somebody else may have written it; what is thrown away lies in the folder."""
    from v2r_core.deploy.bundle import load_bundle

    bundle, out, mine = load_bundle(tiny_bundle), tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    with SetWriter(out, set_record("bags", tmp_path, bundle, None), force=False) as writer:
        writer.add(ManifestLine.of("run1", "done", 1, 0.0, "", (1, 1, "x")))
        (out / "run1").mkdir()
    path = out / MANIFEST
    path.write_text(
        path.read_text() + "".join(path.read_text().replace("run1", n) for n in ("../mine", str(mine), "."))
    )
    with SetWriter(out, set_record("bags", tmp_path, bundle, "uvd"), force=True) as writer:
        assert writer.lines == {}
    assert mine.is_dir()
    assert out.is_dir()
    assert not (out / "run1").exists()


def test_two_runs_at_once(label, folder: Path, tmp_path: Path) -> None:
    label()
    record = read_record(tmp_path / "out")
    assert record is not None
    with (
        SetWriter(tmp_path / "out", record, force=False),
        pytest.raises(FileExistsError, match="another process is labelling into"),
    ):
        label()
    assert counts(label()) == (4, 0, 0)


def test_a_torn_manifest(label, tmp_path: Path) -> None:
    """Cut off anywhere, its last line counts as none; all lines stay readable for others."""
    label()
    path = tmp_path / "out" / MANIFEST
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in random.Random(1).sample(range(len(lines[-1])), 8):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        assert counts(label()) == (3, 1, 0)
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4
    path.write_bytes(b"\xff\x00 no line\n" + whole)
    assert counts(label()) == (4, 0, 0)


def test_a_worker_that_dies(label, folder: Path, tmp_path: Path) -> None:
    write_video(folder / "2.mp4", count=3000)
    with deadly(folder / "2.mp4"):
        done = label(workers=2)
    assert counts(done) == (0, 3, 1)
    assert "SIGKILL" in done.failed["2.mp4"]
    assert counts(label(workers=2)) == (3, 1, 0)


# --- kills ---


def start(folder: Path, out: Path, model: Path, workers: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, HELPER, folder, out, model, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n", process.communicate()[1]
    return process


def finish(process: subprocess.Popen) -> tuple[int, int, int]:
    text, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    kept, labelled, failed = map(int, text.split())
    return kept, labelled, failed


def check_complete(out: Path) -> None:
    """Whatever has a final name is whole; what was being written has none yet."""
    for table in (out / "labels").rglob("[!.]*.parquet"):
        read_labels(table)
    for overlay in (out / "overlays").rglob("[!.]*.mp4"):
        if overlay.is_file():
            with open_video(overlay) as video:
                assert len(video) >= 20


def wait_for_lines(manifest: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.002)


def check_kills(tmp_path: Path, model: Path, count: int, workers: int) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        write_video(folder / f"{number}.mp4", count=20 + number)
    (folder / "bad.mp4").touch()
    assert finish(start(folder, tmp_path / "whole", model, workers)) == (0, 12, 1)
    whole = tables(tmp_path / "whole")
    moments = random.Random(count)
    went_on = 0
    for number in range(count):
        out = tmp_path / f"out_{number}"
        process = start(folder, out, model, workers)
        # Not after some time: how fast it is depends on what else the machine does.
        wait_for_lines(out / MANIFEST, moments.randrange(1, 9))
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (out / "labels").exists():
            check_complete(out)
        kept, labelled, failed = finish(start(folder, out, model, workers))
        assert (kept + labelled, failed) == (12, 1)
        went_on += 0 < kept < 12
        assert tables(out) == whole
        assert not list(out.rglob("*.partial"))
        shutil.rmtree(out)
    assert went_on >= count // 2, "most runs must have been killed in the middle"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(tmp_path: Path, tiny_bundle: Path, workers: int) -> None:
    check_kills(tmp_path, tiny_bundle, 2, workers)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_twenty_times_at_random_moments(tmp_path: Path, tiny_bundle: Path, workers: int) -> None:
    check_kills(tmp_path, tiny_bundle, 20, workers)


def test_set_record_of_a_step_reward(tmp_path: Path) -> None:
    from v2r_core.deploy.bundle import load_bundle

    bundle = load_bundle(write_learned_bundle(tmp_path / "viper", "viper"))
    assert set_record("videos", tmp_path, bundle, None).reward_kind == "step_reward"
    assert set_record("videos", tmp_path, bundle, "uvd").reward_kind == "value"
