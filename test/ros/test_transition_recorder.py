"""What the robot did becomes episodes: rewards find their frames, and no trouble with the disk reaches the robot."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from v2r_core.rl.replay import Layout, ReplayStore
from v2r_ros import transitions
from v2r_ros.transitions import TransitionRecorder, open_store

SIZE = 16


def frame(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), (number, number + 1, number + 2), np.uint8)


def action(number: int) -> np.ndarray:
    return np.full(2, number / 100, np.float32)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def problems() -> list[str]:
    return []


def recorder(folder: Path, problems: list[str], patience: float | None = 0.25) -> TransitionRecorder:
    return TransitionRecorder(open_store(str(folder), SIZE, 2, 0.001), problems.append, patience=patience)


def small(folder: Path, rows: int, problems: list[str], said: list[str]) -> TransitionRecorder:
    layout = Layout((3, SIZE, SIZE), "uint8", 2)
    store = ReplayStore(folder, layout, rows * layout.row_bytes)
    return TransitionRecorder(store, problems.append, patience=None, say=said.append)


def steps(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, ReplayStore]:
    store = ReplayStore(folder, read_only=True)
    rows = np.arange(1, store.episodes[0].rows)
    batch = store.at(np.zeros_like(rows), rows, nstep=1, gamma=1.0, stack=1)
    return batch.next_observation[:, 0, :, 0, 0], batch.action[:, 0], batch.reward, store


def test_rewards_find_their_frames_in_any_order(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems)
    book.reward(100, 9.0)  # of the first frame: nobody's step
    book.begin(0, frame(0))
    book.reward(103, 3.0)
    book.reward(101, 1.0)
    for number in (1, 2, 3, 4):
        book.step(100 + number, action(number), frame(number))
    book.reward(104, float("nan"))
    book.end({"end_reason": 1})
    until(lambda: book.episodes == 1)
    book.close()
    frames, actions, rewards, store = steps(tmp_path / "d")
    assert frames.tolist() == [[n, n + 1, n + 2] for n in (1, 2, 3, 4)]
    assert actions == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert rewards.tolist() == [1, 0, 3, 0]  # that of 102 was dropped, that of 104 is none
    assert store.episodes[0].notes == {"end_reason": 1, "missing_rewards": 2}
    assert not problems


def test_a_reward_that_comes_late_is_waited_for(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems)
    book.begin(0, frame(0))
    book.step(1, action(1), frame(1))
    book.end({})
    time.sleep(0.05)
    assert book.episodes == 0
    book.reward(1, 5.0)
    until(lambda: book.episodes == 1)
    book.close()
    assert steps(tmp_path / "d")[2].tolist() == [5]


def test_rewards_are_those_of_the_new_episode_where_a_reset_puts_time_back(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems, patience=5.0)
    for pay in (10, 20):
        book.begin(0, frame(0))
        for number in range(1, 4):
            book.step(number, action(number), frame(number))
            book.reward(number, pay + number)
        book.end({})
        until(lambda pay=pay: book.episodes == pay // 10)
        for number in range(4, 9):  # of the time between two episodes
            book.reward(number, 99.0)
    book.begin(0, frame(0))
    for number in range(1, 6):
        book.step(number, action(number), frame(number))
        time.sleep(0.02)  # the step waits for its reward, and not in vain
        book.reward(number, 30 + number)
    book.end({})
    book.close()
    with ReplayStore(tmp_path / "d", read_only=True) as store:
        rewards = [store.read(episode)[1]["reward"][1:].tolist() for episode in store.episodes]
        assert [episode.notes["missing_rewards"] for episode in store.episodes] == [0, 0, 0]
    assert rewards == [[11, 12, 13], [21, 22, 23], [31, 32, 33, 34, 35]]


def test_rewards_that_stop_do_not_fill_the_queue(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems, patience=60.0)
    book.begin(0, frame(0))
    for number in range(1, 200):
        book.step(number, action(1), frame(number % 200))
        until(lambda: book._items.qsize() < 100)
    book.end({})
    book.close()
    assert (book.lost, problems) == (0, [])
    assert steps(tmp_path / "d")[3].episodes[0].notes["missing_rewards"] == 199


@pytest.mark.parametrize("length", [9, 10, 11, 27, 28, 100])
def test_an_episode_longer_than_the_store_is_kept_in_pieces(tmp_path: Path, problems: list[str], length: int) -> None:
    said: list[str] = []
    book = small(tmp_path / "d", 40, problems, said)
    book.begin(0, frame(0), robot_episode=7)
    for number in range(1, length + 1):
        book.step(number, action(number), frame(number))
        until(lambda: book._items.qsize() < 100)
    book.end({"end_reason": 1})
    book.begin(0, frame(200), robot_episode=8)
    book.step(1, action(1), frame(201))
    book.end({"end_reason": 2})
    book.close()
    with ReplayStore(tmp_path / "d", read_only=True) as store:
        *pieces, after = store.episodes
        seen: list[tuple[int, float, int]] = []
        for piece in pieces:
            frames, rows = store.read(piece)
            numbers = frames[:, 0, 0, 0].tolist()
            seen += zip(numbers[:-1], rows["action"][1:, 0].tolist(), numbers[1:], strict=True)
    # What is kept are the newest steps, each once and in their order.
    kept = range(length - len(seen) + 1, length + 1)
    assert seen == [(number - 1, pytest.approx(number / 100), number) for number in kept]
    assert len(seen) == length or len(seen) >= 18
    count = -(-length // 9)
    if count > 1:
        assert [piece.notes["piece"] for piece in pieces] == list(range(count))[-len(pieces) :]
        assert len(said) == 1 and "pieces of 9 steps" in said[0] and "record_gb" in said[0]
    else:
        assert "piece" not in pieces[0].notes and not said
    assert all(piece.notes["robot_episode"] == 7 for piece in pieces)
    assert [piece.notes.get("end_reason") for piece in pieces] == [None] * (len(pieces) - 1) + [1]
    assert after.notes == {"robot_episode": 8, "end_reason": 2, "missing_rewards": 0}
    assert not problems


def test_without_rewards_nothing_is_waited_for(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems, patience=None)
    start = time.monotonic()
    book.begin(0, frame(0))
    for number in range(1, 30):
        book.step(number, action(number), frame(number))
    book.end({})
    book.close()
    assert time.monotonic() - start < 2
    assert steps(tmp_path / "d")[3].episodes[0].notes["missing_rewards"] == 0


def test_an_episode_without_its_end_or_without_a_step_is_forgotten(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems, patience=None)
    book.step(1, action(1), frame(1))  # before any
    book.begin(0, frame(0))
    book.end({})
    book.begin(0, frame(0))
    book.step(1, action(1), frame(1))
    book.begin(0, frame(5))
    book.step(2, action(6), frame(6))
    book.end({})
    book.begin(0, frame(0))
    book.step(1, action(1), frame(1))
    book.close()
    frames, _, _, store = steps(tmp_path / "d")
    assert len(store.episodes) == 1
    assert frames.tolist() == [[6, 7, 8]]
    assert not store.skipped
    assert not problems


def test_a_full_disk_is_said_once_and_what_was_complete_stays(tmp_path: Path, problems: list[str]) -> None:
    book = recorder(tmp_path / "d", problems, patience=None)
    book.begin(0, frame(0))
    book.step(1, action(1), frame(1))
    book.end({})
    until(lambda: book.episodes == 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    book._store.append = full  # type: ignore[method-assign]
    for _ in range(3):
        book.begin(0, frame(0))
        book.step(1, action(1), frame(1))
        book.end({})
    until(lambda: bool(problems))
    for number in range(1000):
        book.step(number, action(1), frame(1))  # neither raises nor waits
    book.close()
    assert len(problems) == 1 and "No space left" in problems[0] == book.problem
    assert len(steps(tmp_path / "d")[3].episodes) == 1


def test_a_disk_that_hangs_costs_the_episode_and_not_the_robot(
    tmp_path: Path, problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "QUEUE", 8)
    book = recorder(tmp_path / "d", problems, patience=None)
    append, free = book._store.append, threading.Event()

    def slow(*arguments: object) -> None:
        free.wait()
        append(*arguments)

    book._store.append = slow  # type: ignore[method-assign]
    start = time.monotonic()
    book.begin(0, frame(0))
    for number in range(1, 50):
        book.step(number, action(number), frame(number))
    book.end({})
    assert time.monotonic() - start < 1
    assert book.lost == 1
    free.set()
    until(book._items.empty)
    book.begin(0, frame(7))
    book.step(1, action(1), frame(8))
    book.end({"end_reason": 2})
    until(lambda: book.episodes == 1)
    book.close()
    frames, _, _, store = steps(tmp_path / "d")
    assert len(store.episodes) == 1
    assert frames.tolist() == [[8, 9, 10]]
    assert not problems
