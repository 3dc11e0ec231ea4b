"""What `v2r view` writes, read back from its file: every entity, every number, every picture."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of, numbered, write_video
from labelled_sets import rising, write_video_set
from PIL import Image
from recordings import IMAGE_TOPIC, SECOND, START, episode_end, images, read_bag, write_bag

from v2r_core.cli import view
from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Status
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.look.labelled import open_labelled
from v2r_core.look.rerun_log import shrink

pytest.importorskip("rerun")
SCALARS = ("progress", "value", "reward", "uncertainty")


class Recording:
    """The rows of an .rrd file by entity: frame number, stamp in seconds, content."""

    def __init__(self, path: Path) -> None:
        from rerun.chunk import RrdReader

        self.rows: dict[str, list[tuple[int, float, object]]] = {}
        self.static: set[str] = set()
        for chunk in RrdReader(path).stream().to_chunks():
            name = chunk.entity_path.lstrip("/")
            if chunk.is_static:
                self.static.add(name)
                continue
            batch = chunk.to_record_batch()
            if "frame" not in batch.schema.names:
                continue
            (content,) = [n for n in batch.schema.names if n.rpartition(":")[2] in ("scalars", "blob", "text", "state")]
            stamps = [value.value / 1e9 for value in batch["stamp"]]
            values = [value[0] if value is not None else None for value in batch[content].to_pylist()]
            rows = zip(batch["frame"].to_pylist(), stamps, values, strict=True)
            self.rows.setdefault(name, []).extend(rows)
        for rows in self.rows.values():
            rows.sort(key=lambda row: row[0])

    def numbers(self, name: str) -> np.ndarray:
        return np.array([row[2] for row in self.rows[name]])


def picture(row: tuple[int, float, object]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes(row[2]))).convert("RGB"))


def test_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {f"{n}.mp4": rising(12 + n, 0.5 + 0.1 * n, f"{n}.mp4") for n in range(3)}
    split = np.arange(12) // 6
    first = labels["0.mp4"]
    status = np.where(np.arange(12) > 9, Status.OUT_OF_DISTRIBUTION, first.status)
    curve = replace(first.curve, subgoal_index=split, subgoal_count=np.full(12, 2))
    labels["0.mp4"] = replace(first, curve=curve, status=status)
    folder = write_video_set(tmp_path, labels)
    file = tmp_path / "deep" / "view.rrd"
    assert main(["view", str(folder), "--save", str(file), "--overlay", "--max-side", "64", "--episodes", "0,2"]) == 0
    assert "2 of 3 episodes, 26 frames, 26 with a picture" in capsys.readouterr().out
    assert [each.name for each in file.parent.iterdir()] == ["view.rrd"]
    found = Recording(file)
    assert found.rows.keys() == {*SCALARS, "camera", "overlay", "status", "events"}
    assert found.static >= set(SCALARS)
    with open_labelled(folder) as labelled:
        own = [labelled[place].labels for place in (0, 2)]
    for name in SCALARS:
        expected = np.concatenate([getattr(each.curve, name) for each in own])
        np.testing.assert_array_equal(found.numbers(name), expected)
        assert [row[0] for row in found.rows[name]] == list(range(26))
    # The second episode has stamps from 0 again, so it comes a second behind the first one.
    stamps = np.concatenate([own[0].stamps, own[1].stamps + own[0].stamps[-1] + 1])
    for name in (*SCALARS, "camera", "overlay"):
        np.testing.assert_allclose([row[1] for row in found.rows[name]], stamps, atol=1e-6)
    assert [number_of(picture(row)) for row in found.rows["camera"]] == [*range(12), *range(14)]
    assert {max(picture(row).shape[:2]) for name in ("camera", "overlay") for row in found.rows[name]} == {64}
    states = [(0, "warming up"), (1, "ok"), (10, "out of distribution"), (12, "warming up"), (13, "ok")]
    assert [(row[0], row[2]) for row in found.rows["status"]] == states
    events = [(row[0], row[2]) for row in found.rows["events"]]
    assert events == [
        (0, "0.mp4: 12 frames, goal goal"),
        (6, "subgoal 2 of 2"),
        (12, "2.mp4: 14 frames, goal goal"),
    ]


def test_a_bag_has_its_own_times(tmp_path: Path, tiny_bundle: Path) -> None:
    second = images([numbered(100 + n) for n in range(15)], START + 100 * SECOND)
    bag = write_bag(tmp_path / "run", [*images([numbered(n) for n in range(20)]), episode_end(START + SECOND), *second])
    label_bag(BagTask(bag, tmp_path / "labelled"), load_bundle(tiny_bundle))
    assert main(["view", str(tmp_path / "labelled"), "--save", str(tmp_path / "view.rrd")]) == 0
    found = Recording(tmp_path / "view.rrd")
    messages = read_bag(tmp_path / "labelled").messages("/reward_node/reward")
    np.testing.assert_array_equal(found.numbers("value"), [message.value for message in messages])
    stamps = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in messages]
    np.testing.assert_allclose([row[1] for row in found.rows["camera"]], stamps, atol=1e-6)
    assert [number_of(picture(row)) for row in found.rows["camera"]] == [*range(20), *range(100, 115)]
    assert "overlay" not in found.rows


def test_a_missing_image_is_left_out_and_said(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "run", images([numbered(n) for n in range(12)]))
    label_bag(BagTask(bag, tmp_path / "labelled"), load_bundle(tiny_bundle))
    rows = read_bag(tmp_path / "labelled").rows
    lost = [row for row in rows if row[1] == IMAGE_TOPIC][4]
    holes = write_bag(tmp_path / "holes", [row for row in rows if row != lost])
    assert main(["view", str(holes), "--save", str(tmp_path / "view.rrd")]) == 0
    assert "episode 0: 1 of 12 frames have no picture" in capsys.readouterr().err
    found = Recording(tmp_path / "view.rrd")
    assert [row[0] for row in found.rows["camera"]] == [n for n in range(12) if n != 4]
    assert len(found.rows["value"]) == 12


def test_a_video_that_became_shorter_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_video_set(tmp_path, {"a.mp4": rising(12, 1.0, "a.mp4")})
    write_video(tmp_path / "videos" / "a.mp4", count=9)
    assert main(["view", str(folder), "--save", str(tmp_path / "view.rrd")]) == 0
    assert "a.mp4: 3 of 12 frames have no picture (the video has 9 frames; it has changed" in capsys.readouterr().err


def test_whoever_interrupts_finds_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_video_set(tmp_path / "set", {"a.mp4": rising(12, 1.0, "a.mp4")})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "log_episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        view.View(str(folder), save=tmp_path / "view.rrd").run()
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def test_the_file_is_good_and_small(tmp_path: Path) -> None:
    folder = write_video_set(tmp_path, {"a.mp4": rising(40, 1.0, "a.mp4")})
    file = tmp_path / "view.rrd"
    assert main(["view", str(folder), "--save", str(file)]) == 0
    assert file.stat().st_size < 40 * 96 * 48 * 3 / 2
    tool = Path(sys.executable).with_name("rerun")
    if not tool.exists():
        pytest.skip("the rerun command is not installed")
    done = subprocess.run([tool, "rrd", "verify", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_display_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clip: Path
) -> None:
    folder = write_video_set(tmp_path, {"a.mp4": rising(12, 1.0, "a.mp4")})
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(folder)]) == 0
    assert "no display" in capsys.readouterr().err
    assert (tmp_path / "out" / "view.rrd").stat().st_size > 1000
    assert main(["view", str(clip)]) == 1
    assert "label it first" in capsys.readouterr().err


def test_with_a_display_the_viewer_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rerun as rr

    started: list[object] = []
    monkeypatch.setattr(rr.RecordingStream, "spawn", lambda self, **options: started.append(options))
    monkeypatch.setattr(view, "has_display", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(write_video_set(tmp_path, {"a.mp4": rising(12, 1.0, "a.mp4")}))]) == 0
    assert len(started) == 1 and not (tmp_path / "out").exists()


def test_episodes_by_number() -> None:
    assert view.choose_episodes(None, 30) == list(range(10))
    assert view.choose_episodes("5, 0-2,1", 6) == [5, 0, 1, 2]
    for words in ("", "a", "-1", "3-", "4-2", "0-99999999999", "6"):
        with pytest.raises(ValueError, match="--episodes"):
            view.choose_episodes(words, 6)


@pytest.mark.parametrize(("shape", "expected"), [((48, 96), (32, 64)), ((200, 10), (64, 3)), ((20, 30), (20, 30))])
def test_pictures_keep_their_shape(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shrink(np.zeros((*shape, 3), np.uint8), 64).shape == (*expected, 3)
