"""A conversion that is killed goes on behind its last finished episode, and comes to the same end."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of
from robot_bags import SECOND, START, episode, reward, write_bag

import v2r_core.convert.sources as sources_module
from v2r_core.convert.journal import EpisodeJournal
from v2r_core.convert.parts import Wishes
from v2r_core.convert.run import Converted, ConvertTask, convert
from v2r_core.convert.sources import Kind
from v2r_core.video.source import open_video

HELPER = Path(__file__).with_name("convert_until_killed.py")
STATES = ("/joint_states",)
FRAMES = (10, 13, 16, 19)
"""Of the episodes of a bag."""


def bags(folder: Path, count: int = 3, episodes: int = len(FRAMES)) -> Path:
    """Labelled bags of two cameras and joints."""
    for bag in range(count):
        rows = []
        for number in range(episodes):
            start, frames = START + (100 * bag + 9 * number) * SECOND, FRAMES[number]
            rows += episode(start, frames, number=number)
            rows += [reward(float(index), start + index * SECOND // 20, number) for index in range(frames)]
        write_bag(folder / f"run{bag}", rows)
    return folder


def source_of(to: Kind, root: Path) -> tuple[Path, tuple[str, ...]]:
    """What is converted into that, and the topics of its state."""
    made = bags(root / "bags")
    if to != "bag":
        return made, STATES if to == "lerobot" else ()
    convert(ConvertTask(made, root / "dataset", "lerobot", Wishes(states=STATES)))
    return root / "dataset", ()


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "manifest.jsonl" in found:  # says when the videos were written
        lines = [json.loads(line) | {"mtime_ns": 0, "size": 0} for line in found["manifest.jsonl"].splitlines()]
        found["manifest.jsonl"] = json.dumps(lines).encode()
        # Where it looks ahead, libx264 does not always give the same bytes for the same frames.
        for name in [each for each in found if each.endswith(".mp4")]:
            with open_video(folder / name) as video:
                found[name] = bytes(number_of(frame) for frame in video)
    return found


def start(source: Path, out: Path, to: Kind, states: tuple[str, ...]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, HELPER, source, out, to, *states], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, ...]:
    """Episodes that were taken over, episodes and frames in all."""
    text, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    word, *numbers = text.splitlines()[-1].split()
    assert word == "done"
    return tuple(map(int, numbers))


def kill(process: subprocess.Popen, frames: int, moment: float) -> None:
    """Kills a process when it has so many frames, and a moment later."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("done") or int(line) >= frames:
            break
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["lerobot", "videos", "bag"])
def test_killed_at_random_moments(tmp_path: Path, to: Kind):
    source, states = source_of(to, tmp_path)
    out = tmp_path / "out"
    resumed, *sizes = finish(start(source, out, to, states))
    assert (resumed, *sizes) == (0, 12, 3 * sum(FRAMES))
    whole = contents(out)
    out.rename(tmp_path / "whole")
    moments, kills = random.Random(6), 0
    for _ in range(3):
        # The second kill comes when something has been taken over already, the last one may come too late.
        for frames in sorted(moments.randint(1, sizes[1]) for _ in range(2)):
            kill(start(source, out, to, states), frames, moments.uniform(0, 0.01))
            if out.exists():
                break
            kills += 1
        else:
            resumed, *found = finish(start(source, out, to, states))
            assert found == sizes
            ends = np.cumsum(FRAMES * 3)
            assert resumed >= np.count_nonzero(ends < frames), "of an episode that was finished nothing is done again"
        assert contents(out) == whole
        assert not out.with_name("out.partial").exists()
        out.rename(tmp_path / f"old_{moments.random()}")
    assert kills >= 3


class Interrupted(Exception):
    """Raised in the middle."""


def interrupted(task: ConvertTask, frames: int) -> None:
    def stop(done: int, _: int) -> None:
        if done == frames:
            raise Interrupted

    with pytest.raises(Interrupted):
        convert(task, stop)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The recordings that are opened."""
    names: list[str] = []
    plain = sources_module._bag

    def watched(path: Path, name: str) -> sources_module.Item:
        item = plain(path, name)
        return sources_module.Item(name, lambda *how: (names.append(name), item.open(*how))[1], item.looks)

    monkeypatch.setattr(sources_module, "_bag", watched)
    yield names


@pytest.mark.parametrize("to", ["lerobot", "videos"])
def test_what_is_done_is_not_opened_again_and_what_has_changed_is(tmp_path: Path, to: Kind, opened: list[str]):
    folder = bags(tmp_path / "bags", episodes=2)
    whole = _summary(convert(ConvertTask(folder, tmp_path / "whole", to)))
    task = ConvertTask(folder, tmp_path / "out", to)
    # run0 is done, and run1's first episode; there are 23 frames in each.
    interrupted(task, 23 + 10 + 2)
    opened.clear()
    done = convert(task)
    assert opened == ["run1", "run2"]
    assert done.resumed == 3
    assert _summary(done) == whole
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "whole").keys()

    (tmp_path / "out").rename(tmp_path / "first")
    interrupted(task, 23 + 10 + 2)
    changed = next((folder / "run0").glob("*.mcap"))
    changed.touch()
    assert convert(task).resumed == 1, "of run1, which is as it was"
    (tmp_path / "out").rename(tmp_path / "second")
    interrupted(task, 23 + 10 + 2)
    other = ConvertTask(folder, tmp_path / "out", to, Wishes(fps=10))
    assert convert(other).resumed == 0


def _summary(done: Converted) -> tuple[object, ...]:
    return done.layout, done.episodes, done.frames, done.failed, done.left_out, done.tasks


def test_messages_of_a_bag_are_not_taken_over_to_another_place(tmp_path: Path):
    """They say the number of their episode, and come after those of the one before."""
    folder = tmp_path / "bags"
    bags(folder, count=2, episodes=2)
    for name in ("run0", "run1"):
        convert(ConvertTask(folder / name, tmp_path / "sets" / name, "videos"))
    videos = tmp_path / "videos"
    for name in ("run0", "run1"):
        for file in sorted((tmp_path / "sets" / name / "videos" / "front").iterdir()):
            videos.mkdir(exist_ok=True)
            (videos / f"{name}_{file.name}").write_bytes(file.read_bytes())
    task = ConvertTask(videos, tmp_path / "out", "bag")
    interrupted(task, 10 + 13 + 5)
    next(iter(sorted(videos.iterdir()))).unlink()
    assert convert(task).resumed == 0


@pytest.mark.parametrize("left", ["journal", "journal/000000.parquet"])
def test_what_v2r_label_has_left_is_not_touched(tmp_path: Path, left: str):
    source = bags(tmp_path / "bags", count=1, episodes=1)
    file = tmp_path / "out.partial" / left
    file.parent.mkdir(parents=True)
    file.write_bytes(b"answers")
    refused: list[BaseException] = []  # kept, so that nothing is freed that should have been closed
    for _ in range(2):  # also the second time: the lock was given back
        with pytest.raises(FileExistsError, match=r"out\.partial was left by an interrupted `v2r label`") as caught:
            convert(ConvertTask(source, tmp_path / "out", "videos"))
        refused.append(caught.value)
    assert file.read_bytes() == b"answers"


def test_an_episode_is_there_as_a_whole_or_not_at_all(tmp_path: Path):
    journal = EpisodeJournal(tmp_path / "journal")
    journal.open()
    (journal.begin("a/0") / "file").write_text("x")
    assert journal.episode("a/0") is None
    folder = journal.end("a/0")
    assert journal.episode("a/0") == folder
    journal.begin("a/1")
    journal.begin("b/0")
    again = EpisodeJournal(tmp_path / "journal")
    again.open()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "journal",
        "journal/a",
        "journal/a/0",
        "journal/a/0/file",
    ]
    (tmp_path / "journal/a/recording.json").write_text("{")
    assert again.recording("a") is None
