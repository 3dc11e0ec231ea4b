"""A labelling that is killed goes on where it stopped, and comes to the same end as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from recordings import (
    IMAGE_TOPIC,
    START,
    STEP,
    clutter,
    episode_end,
    images,
    mirrored,
    read_bag,
    square_frames,
    write_bag,
)
from rosbags.rosbag2 import StoragePlugin
from toy_rewards import write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.label.journal import AnswerJournal
from v2r_core.label.partial import PartialFolder
from v2r_core.label.rosbag import BagTask, label_bag

HELPER = Path(__file__).with_name("label_until_killed.py")


def long_bag(path: Path, storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Twenty episodes of two seconds."""
    frames = square_frames(60)
    rows = [row for number in range(20) for row in images(frames, START + number * 60 * STEP)]
    ends = [episode_end(START + number * 60 * STEP + 59 * STEP + STEP // 2, number) for number in range(20)]
    return write_bag(path, [*rows, *ends, *clutter()], storage)


def start(bag: Path, out: Path, model: Path, goal: str = "", topics: Sequence[str] = ()) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, HELPER, bag, out, model, goal, *topics],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n", process.communicate()[1]
    return process


def finish(process: subprocess.Popen) -> tuple[int, int]:
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    replayed, needed = map(int, text.split())
    return replayed, needed


def check_kills(bag: Path, model: Path, count: int, topics: Sequence[str] = ()) -> None:
    tmp_path = bag.parent
    process = start(bag, tmp_path / "whole", model, topics=topics)
    began = time.monotonic()
    assert finish(process)[0] == 0
    seconds = time.monotonic() - began
    # The names of the files are those of the bag; all else has to be the same.
    whole = read_bag(tmp_path / "whole")
    moments = random.Random(count)
    resumed = killed = 0
    for number in range(count):
        out = tmp_path / f"labelled_{number}"
        process = start(bag, out, model, topics=topics)
        # The run that was timed may have had less of the machine than this one.
        time.sleep(moments.uniform(0, 0.7 * seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # it was just ready
            assert read_bag(out) == whole
            continue
        killed += 1
        replayed, needed = finish(start(bag, out, model, topics=topics))
        resumed += replayed > 0
        assert replayed <= needed
        assert read_bag(out) == whole
        assert not out.with_name(out.name + ".partial").exists()
    assert killed >= count // 4
    # On a slow machine the early ones die before anything was labelled.
    assert resumed >= max(1, killed // 4), "runs must have gone on from something"


def test_killed_at_random_moments(tmp_path: Path, tiny_bundle: Path) -> None:
    check_kills(long_bag(tmp_path / "run"), tiny_bundle, 5)


def test_two_cameras_killed_at_random_moments(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames(60)
    rows = [row for number in range(10) for row in images(frames, START + number * 60 * STEP)]
    other = mirrored(frames)
    for number in range(10):
        rows += images(other, START + number * 60 * STEP + STEP // 4, topic="/wrist/image")
    bag = write_bag(tmp_path / "run", [*rows, *clutter()])
    check_kills(bag, tiny_bundle, 4, [IMAGE_TOPIC, "/wrist/image"])


@pytest.mark.slow
@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_killed_twenty_times_at_random_moments(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    check_kills(long_bag(tmp_path / "run", storage), tiny_bundle, 20)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gets_there(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = long_bag(tmp_path / "run")
    finish(start(bag, tmp_path / "whole", tiny_bundle))
    out, moments = tmp_path / "labelled", random.Random(7)
    for _ in range(10):
        process = start(bag, out, tiny_bundle)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            break
    else:
        finish(start(bag, out, tiny_bundle))
    assert read_bag(out) == read_bag(tmp_path / "whole")


@pytest.mark.parametrize("reward", ["time", "viper", "diffusion"])
def test_networks_are_not_asked_twice(tmp_path: Path, reward: str) -> None:
    """An interrupt in the middle: everything that was answered is taken over, whatever the reward is made of."""
    bundle = load_bundle(write_learned_bundle(tmp_path / "bundle", reward))
    bag = write_bag(tmp_path / "run", images(square_frames()))
    whole = label_bag(BagTask(bag, tmp_path / "whole"), bundle)

    def interrupt(images: int, of: int) -> None:
        if images == 30:
            raise KeyboardInterrupt

    task = BagTask(bag, tmp_path / "labelled")
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        label_bag(task, bundle, on_progress=interrupt)
    assert not task.out.exists()
    assert sorted(path.name for path in (tmp_path / "labelled.partial").iterdir()) == ["journal", "lock"]
    assert threading.active_count() == threads
    done = label_bag(task, bundle)
    assert done.resumed[1] == whole.resumed[1]
    assert 0.6 * done.resumed[1] < done.resumed[0] < done.resumed[1]
    assert read_bag(task.out) == read_bag(tmp_path / "whole")


def test_the_journal_of_another_bag_or_model_is_not_believed(tmp_path: Path, tiny_bundle: Path) -> None:
    first = write_bag(tmp_path / "first", images(square_frames()))
    second = write_bag(tmp_path / "second", images([255 - frame for frame in square_frames()]))
    whole = label_bag(BagTask(second, tmp_path / "whole"), load_bundle(tiny_bundle))

    def interrupt(images: int, of: int) -> None:
        if images == 40:
            raise KeyboardInterrupt

    task = BagTask(first, tmp_path / "labelled")
    with pytest.raises(KeyboardInterrupt):
        label_bag(task, load_bundle(tiny_bundle), on_progress=interrupt)
    done = label_bag(BagTask(second, task.out), load_bundle(tiny_bundle))
    assert done.resumed[1] == whole.resumed[1]
    assert done.resumed[0] <= 1
    contents, wanted = read_bag(task.out), read_bag(tmp_path / "whole")
    assert contents == wanted


# --- the journal ---


def test_the_journal_of_a_conversion_is_not_touched(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    episode = tmp_path / "labelled.partial" / "journal" / "recording" / "000000"
    episode.mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"labelled\.partial was left by another command .* remove the folder"):
        label_bag(BagTask(bag, tmp_path / "labelled"), load_bundle(tiny_bundle))
    assert episode.is_dir()


def test_journal_replays_and_goes_on(tmp_path: Path) -> None:
    asked = []

    def network(x, *, scale=None):
        asked.append(len(asked))
        return (x.astype(np.float32) * (1 if scale is None else scale)).sum(axis=1)

    frames = np.random.default_rng(0).integers(0, 256, (10, 2, 3), dtype=np.uint8)
    answers = []
    for count in (4, 7, 10):
        asked.clear()
        with AnswerJournal(tmp_path / "journal", "model") as journal:
            ask = journal.wrap("net", network)
            answers = [ask(frame, scale=np.float32(2)) for frame in frames[:count]]
            assert journal.replayed + journal.asked == count
        assert len(asked) == {4: 4, 7: 3, 10: 3}[count]
    np.testing.assert_array_equal(answers, [network(frame, scale=2) for frame in frames])
    assert answers[0].dtype == np.float32


@pytest.mark.parametrize("change", ["identity", "name", "input", "argument", "shape", "dtype"])
def test_journal_ends_at_the_first_other_question(tmp_path: Path, change: str) -> None:
    def network(x, **named):
        return np.asarray([x.astype(np.float64).sum() + len(named)])

    rows = [np.full((2, 2), number, np.int32) for number in range(6)]
    with AnswerJournal(tmp_path / "journal", "model") as journal:
        for row in rows:
            journal.wrap("net", network)(row, a=row)
    size = (tmp_path / "journal").stat().st_size
    with AnswerJournal(tmp_path / "journal", "other" if change == "identity" else "model") as journal:
        ask = journal.wrap("other" if change == "name" else "net", network)
        start = 0 if change in ("identity", "name") else 3
        for row in rows[:start]:
            ask(row, a=row)
        assert journal.replayed == start
        other = {"input": rows[3] + 1, "shape": rows[3].reshape(4), "dtype": rows[3].astype(np.int64)}.get(
            change, rows[3]
        )
        key = "b" if change == "argument" else "a"
        np.testing.assert_array_equal(ask(other, **{key: other}), network(other, a=other))
        assert (journal.replayed, journal.asked) == (start, 1)
        assert (tmp_path / "journal").stat().st_size == size // 6 * (start + 1)
        ask(rows[4], a=rows[4])
        assert journal.asked == 2, "what came after the difference is forgotten, also where it would fit again"


def test_journal_with_a_torn_or_damaged_end(tmp_path: Path) -> None:
    def network(x):
        return x * 2.0

    rows = [np.full(5, number, np.float32) for number in range(6)]
    path = tmp_path / "journal"
    with AnswerJournal(path, "model") as journal:
        for row in rows:
            journal.wrap("net", network)(row)
    whole = path.read_bytes()
    record = len(whole) // 6
    torn = [whole[:cut] for cut in range(0, len(whole), 7)]
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
    for content, intact in [(c, len(c) // record) for c in torn] + [
        (c, n * 5 // record) for n, c in enumerate(flipped)
    ]:
        path.write_bytes(content)
        with AnswerJournal(path, "model") as journal:
            found = [journal.wrap("net", network)(row) for row in rows]
            assert journal.replayed == intact
        np.testing.assert_array_equal(found, [network(row) for row in rows])
        assert path.read_bytes() == whole


def test_journal_asks_again_for_long_answers(tmp_path: Path) -> None:
    calls = []

    def network(x):
        calls.append(x[0])
        return np.zeros(1 << 17) + x[0] if x[0] % 2 else x

    for _ in range(2):
        with AnswerJournal(tmp_path / "journal", "model") as journal:
            found = [journal.wrap("net", network)(np.array([number]))[0] for number in range(6)]
        assert found == list(range(6))
    assert calls == [0, 1, 2, 3, 4, 5, 1, 3, 5]
    assert (tmp_path / "journal").stat().st_size < 1000


# --- the folder ---


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out", force=False) as partial:
        partial.journal.write_text("x")
        with pytest.raises(FileExistsError, match="another process"), PartialFolder(tmp_path / "out", force=False):
            pass
    with PartialFolder(tmp_path / "out", force=False) as partial:
        assert partial.journal.read_text() == "x"
        partial.product.mkdir()
        partial.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_killed_between_two_renames(tmp_path: Path) -> None:
    """What was to be replaced is in the folder, and nothing has its name."""
    folder = tmp_path / "out.partial"
    (folder / "replaced").mkdir(parents=True)
    (folder / "replaced" / "old").touch()
    (folder / "out").mkdir()
    with pytest.raises(FileExistsError), PartialFolder(tmp_path / "out", force=False):
        pass
    assert (tmp_path / "out" / "old").exists()
    with PartialFolder(tmp_path / "out", force=True) as partial:
        partial.product.mkdir()
        (partial.product / "new").touch()
        partial.finish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_a_product_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    real = Path.rename

    def rename(self, target):
        if self.name == "out" and self.parent.name == "out.partial":
            raise OSError(5, "Input/output error")
        return real(self, target)

    partial = PartialFolder(tmp_path / "out", force=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="Input"), partial:
        partial.product.mkdir()
        patch.setattr(Path, "rename", rename)
        partial.finish()
    assert (tmp_path / "out" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
