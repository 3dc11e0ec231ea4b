"""The replay store: what is drawn against a naive store, and what broken disks and processes do to it."""

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from v2r_core.rl.replay import Batch, Layout, ReplayError, ReplayStore, nstep_return, stored_discount

LAYOUT = Layout((2,), "float32", 3)


def frame(uid, row):
    return np.array([uid, row], np.float32)


def action(uid, row):
    return np.array([uid, row, uid - row], np.float32) / 100


def reward(uid, row):
    return float(np.float32(0.5 * uid - row))


def discount(uid, row):
    return 0.0 if (uid + row) % 7 == 0 else 1.0


def record(store, uid, steps, commit=True):
    store.begin(frame(uid, 0))
    for row in range(1, steps + 1):
        store.append(action(uid, row), reward(uid, row), discount(uid, row), frame(uid, row))
    return store.end(uid=uid) if commit else store.abandon()


def capacity(rows, layout=LAYOUT):
    return rows * layout.row_bytes


def uids(store):
    return [episode.notes["uid"] for episode in store.episodes]


def naive_transition(uid, start, nstep, gamma, stack):
    """From what `record` wrote, one number at a time."""
    total, left = 0.0, 1.0
    for row in range(start, start + nstep):
        total += left * reward(uid, row)
        left *= gamma * discount(uid, row)
    newest = (start - 1, start + nstep - 1)
    before, after = ([frame(uid, max(row - k, 0)) for k in reversed(range(stack))] for row in newest)
    return np.stack(before), action(uid, start), total, left, np.stack(after)


def check(batch, chosen, nstep, gamma, stack):
    for b, (uid, start) in enumerate(chosen):
        expected = naive_transition(uid, start, nstep, gamma, stack)
        for found, wanted in zip((part[b] for part in batch), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(1, 9)),
        st.tuples(st.just("abandon"), st.integers(1, 9)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("rewind"), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    done=operations, rows=st.integers(10, 40), nstep=st.integers(1, 4), stack=st.integers(1, 4), seed=st.integers(0, 99)
)
@example(done=[("record", 1), ("abandon", 8), ("reopen", 0)], rows=10, nstep=1, stack=1, seed=0)
def test_store_holds_and_draws_what_a_naive_one_does(tmp_path_factory, done, rows, nstep, stack, seed):
    folder = tmp_path_factory.mktemp("store")
    store = ReplayStore(folder, LAYOUT, capacity(rows))
    assert store.capacity_rows == rows
    slots, alive, steps_of, place, uid = {}, [], {}, 0, 0
    for what, size in done:
        if what == "reopen":
            store.close()
            store = ReplayStore(folder)
            assert all("not ended" not in line for line in store.skipped)
        elif what == "rewind":
            kept = store.number - size
            store.rewind(max(kept, 0))
            alive = [item for item in alive if item[1] < max(kept, 0)]
            place = alive[-1][2] + steps_of[alive[-1][0]] + 1 if alive else 0
        else:
            uid += 1
            steps_of[uid] = size
            for row in range(size + 1):  # whoever owns the slot that is written to is gone, whole
                owner = slots.get((place + row) % rows)
                alive = [item for item in alive if item[0] != owner]
                slots[(place + row) % rows] = uid
            number = record(store, uid, size, commit=what == "record")
            if what == "record":
                alive.append((uid, number, place))
                place += size + 1
        assert uids(store) == [item[0] for item in alive]
    assert store.rows == sum(steps_of[item[0]] + 1 for item in alive)
    usable = [i for i, item in enumerate(alive) if steps_of[item[0]] >= nstep]
    rng = np.random.default_rng(seed)
    if not usable:
        with pytest.raises(ValueError, match="no episode of at least"):
            store.sample(4, rng, nstep=nstep, gamma=0.9, stack=stack)
        return
    batch = store.sample(32, rng, nstep=nstep, gamma=0.9, stack=stack)
    chosen = [(int(f[-1, 0]), int(f[-1, 1]) + 1) for f in batch.observation]
    assert {uid for uid, _ in chosen} <= {alive[i][0] for i in usable}
    assert all(1 <= start <= steps_of[uid] - nstep + 1 for uid, start in chosen)
    check(batch, chosen, nstep, 0.9, stack)
    every = [(i, start) for i in usable for start in range(1, steps_of[alive[i][0]] - nstep + 2)]
    places, starts = (np.array(column) for column in zip(*every, strict=True))
    check(store.at(places, starts, nstep, 0.9, stack), [(alive[i][0], t) for i, t in every], nstep, 0.9, stack)
    store.close()


def test_episodes_are_drawn_alike_and_starts_within_them(tmp_path):
    with ReplayStore(tmp_path, LAYOUT) as store:
        lengths = {1: 3, 2: 12, 3: 40}
        for uid, steps in lengths.items():
            record(store, uid, steps)
        draws = 30_000
        batch = store.sample(draws, np.random.default_rng(0), nstep=3, gamma=0.99, stack=1)
    uid, start = batch.observation[:, 0, 0].astype(int), batch.observation[:, 0, 1].astype(int) + 1
    for one, steps in lengths.items():
        counts = np.bincount(start[uid == one], minlength=steps - 1)[1:]
        assert len(counts) == steps - 2
        expected = draws / 3 / (steps - 2)
        assert ((counts - expected) ** 2 / expected).sum() < steps - 2 + 4 * np.sqrt(2 * (steps - 2)) + 4


def test_the_generator_is_all_the_state(tmp_path):
    with ReplayStore(tmp_path, LAYOUT) as store:
        for uid in range(5):
            record(store, uid, 10)
        rng = np.random.default_rng(3)
        store.sample(8, rng, nstep=3, gamma=0.9, stack=2)
        state = rng.bit_generator.state
        expected = store.sample(8, rng, nstep=3, gamma=0.9, stack=2)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    with ReplayStore(tmp_path, read_only=True) as store:
        found = store.sample(8, rng, nstep=3, gamma=0.9, stack=2)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("shape", "dtype"), [((3, 8, 8), "uint8"), ((5,), "float16"), ((5,), "float32")])
def test_frames_are_stored_once_and_come_back_exactly(tmp_path, shape, dtype):
    layout = Layout(shape, dtype, 1)
    frames = (np.random.default_rng(0).random((7, *shape)) * 200).astype(dtype)
    with ReplayStore(tmp_path, layout) as store:
        store.begin(frames[0])
        for row in frames[1:]:
            store.append(np.zeros(1), 0.0, 1.0, row)
        store.end(success=True, score=np.float32(0.5), name="first")
        assert (tmp_path / "frames.bin").stat().st_size == frames.nbytes
        batch = store.at(np.array([0, 0]), np.array([1, 5]), 2, 0.99, 3)
    assert batch.observation.dtype == frames.dtype
    assert np.array_equal(batch.observation, frames[[[0, 0, 0], [2, 3, 4]]])
    assert np.array_equal(batch.next_observation, frames[[[0, 1, 2], [4, 5, 6]]])
    joined = batch.observation.reshape(2, -1, *shape[1:])
    assert np.shares_memory(joined, batch.observation)
    with ReplayStore(tmp_path, layout) as store:
        read, steps = store.read(store.episodes[0])
        assert np.array_equal(read, frames)
        assert steps["discount"].tolist() == [1.0] * 7
        assert store.episodes[0].notes == {"success": True, "score": 0.5, "name": "first"}


def test_a_termination_counts_only_in_the_paper():
    assert stored_discount(True, "official") == 1.0
    assert stored_discount(True, "paper") == 0.0
    assert stored_discount(False, "official") == stored_discount(False, "paper") == 1.0
    ones = np.ones((1, 3), np.float32)
    ended = np.array([[1, stored_discount(True, "paper"), 1]], np.float32)
    assert nstep_return(ones, ones, 0.5)[1] == pytest.approx(0.125)
    total, left = nstep_return(ones, ended, 0.5)
    assert (total[0], left[0]) == (1.5, 0.0)


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros(2)}, "3 finite floats"),
        ({"action": np.zeros(3, int)}, "3 finite floats"),
        ({"action": np.array([0, np.nan, 0])}, "3 finite floats"),
        ({"reward": float("nan")}, "reward nan"),
        ({"reward": float("inf")}, "reward inf"),
        ({"discount": 1.5}, "discount 1.5"),
        ({"discount": float("nan")}, "discount nan"),
        ({"frame": np.zeros(3, np.float32)}, r"\(3,\)"),
        ({"frame": np.zeros(2)}, "float64"),
        ({"frame": np.array([0, np.inf], np.float32)}, "not finite"),
    ],
)
def test_bad_steps_are_refused_and_leave_the_episode_as_it_was(tmp_path, change, message):
    with ReplayStore(tmp_path, LAYOUT) as store:
        store.begin(frame(1, 0))
        good = {"action": action(1, 1), "reward": reward(1, 1), "discount": discount(1, 1), "frame": frame(1, 1)}
        with pytest.raises(ValueError, match=message):
            store.append(**(good | change))
        store.append(**good)
        store.end(uid=1)
        check(store.at(np.array([0]), np.array([1]), 1, 0.9, 1), [(1, 1)], 1, 0.9, 1)


def test_calls_out_of_order_are_refused(tmp_path):
    with ReplayStore(tmp_path, LAYOUT, capacity(5)) as store:
        with pytest.raises(ValueError, match="begin"):
            store.append(action(1, 1), 0.0, 1.0, frame(1, 1))
        with pytest.raises(ValueError, match="no episode"):
            store.end()
        store.begin(frame(1, 0))
        with pytest.raises(ValueError, match="in progress"):
            store.begin(frame(1, 0))
        with pytest.raises(ValueError, match="at least one step"):
            store.end()
        with pytest.raises(ValueError, match="cannot be rewound"):
            store.rewind(0)
        for row in range(1, 5):
            store.append(action(1, row), 0.0, 1.0, frame(1, row))
        with pytest.raises(ValueError, match="longer than the 5 rows"):
            store.append(action(1, 5), 0.0, 1.0, frame(1, 5))
        with pytest.raises(ValueError, match=r"\['loss'\] are not finite"):
            store.end(loss=float("nan"))
        assert store.end() == 0
    with ReplayStore(tmp_path, read_only=True) as store, pytest.raises(ValueError, match="read only"):
        store.begin(frame(1, 0))


def test_stores_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ReplayError, match=r"no layout\.json"):
        ReplayStore(tmp_path)
    with pytest.raises(ReplayError, match=r"no layout\.json"):
        ReplayStore(tmp_path, LAYOUT, read_only=True)
    with pytest.raises(ReplayError, match="1 rows"):
        ReplayStore(tmp_path, LAYOUT, capacity(1))
    with ReplayStore(tmp_path, LAYOUT), pytest.raises(ReplayError, match="another process writes"):
        ReplayStore(tmp_path, LAYOUT)
    with pytest.raises(ReplayError, match="wanted"):
        ReplayStore(tmp_path, Layout((2,), "float32", 4))
    (tmp_path / "layout.json").write_text('{"schema_version": 2}')
    with pytest.raises(ReplayError, match=r"layout\.json.*version"):
        ReplayStore(tmp_path)
    for bad in (((), "uint8", 1), ((3,), "uint8", 0), ((3,), "int64", 1)):
        with pytest.raises(ValueError, match="expected"):
            Layout(*bad)


# --- what breaks ---


@contextmanager
def largest_file(size):
    """No file may grow beyond this: the kernel refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path):
    layout = Layout((3, 16, 16), "uint8", 3)
    picture = np.full((3, 16, 16), 7, np.uint8)
    with ReplayStore(tmp_path, layout) as store:
        store.begin(picture)
        for _ in range(4):
            store.append(action(1, 1), 1.0, 1.0, picture)
        store.end()
        with largest_file(7 * layout.frame_bytes + 100):  # the third row of the next episode fits in part
            store.begin(picture + 1)
            store.append(action(1, 1), 1.0, 1.0, picture + 1)
            with pytest.raises(OSError, match="Free space") as caught:
                store.append(action(1, 1), 1.0, 1.0, picture + 1)
            assert str(tmp_path) in str(caught.value)
            store.abandon()
            batch = store.sample(16, np.random.default_rng(0), nstep=2, gamma=0.9, stack=2)
            assert (batch.observation == 7).all()
        store.begin(picture + 2)  # space again
        store.append(action(1, 1), 1.0, 1.0, picture + 2)
        assert store.end() == 1
    with ReplayStore(tmp_path) as store:
        assert [episode.rows for episode in store.episodes] == [5, 2]
        assert not store.skipped


@pytest.mark.parametrize("where", ["begin", "journal", "journal, then given up"])
def test_full_disk_at_the_ends_of_an_episode(tmp_path, monkeypatch, where):
    real, left = os.pwrite, [10_000]

    def pwrite(file, content, offset):
        taken = min(len(content), left[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= taken
        return real(file, content[:taken], offset)

    with ReplayStore(tmp_path, LAYOUT) as store:
        record(store, 1, 4)
        monkeypatch.setattr(os, "pwrite", pwrite)
        if where == "begin":
            left[0] = 3
            with pytest.raises(OSError, match="No space left"):
                store.begin(frame(2, 0))
            assert not store.recording
        else:
            store.begin(frame(2, 0))
            store.append(action(2, 1), reward(2, 1), discount(2, 1), frame(2, 1))
            left[0] = 20  # of the journal's line
            with pytest.raises(OSError, match="No space left"):
                store.end(uid=2)
            assert uids(store) == [1]
            left[0] = 10_000
            if where == "journal":
                assert store.end(uid=2) == 1
            else:
                store.abandon()
    monkeypatch.undo()
    with ReplayStore(tmp_path) as store:
        assert uids(store) == ([1, 2] if where == "journal" else [1])
        assert all("line" not in text for text in store.skipped)


def killed(folder, code):
    """Runs code with a store in a process that dies without closing anything."""
    helpers = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_replay import *\n"
    body = f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{textwrap.dedent(code)}\nos._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", helpers + body], check=False).returncode == 9


def test_a_killed_writer_loses_its_last_episode_only(tmp_path):
    killed(
        tmp_path,
        """
        store = ReplayStore(folder, LAYOUT)
        record(store, 1, 5); record(store, 2, 5)
        store.begin(frame(3, 0))
        store.append(action(3, 1), 0.0, 1.0, frame(3, 1))
        """,
    )
    with ReplayStore(tmp_path) as store:
        assert uids(store) == [1, 2]
        assert store.skipped == ("rows 12 to 13: an episode that was not ended",)
        assert record(store, 4, 5) == 2
    with ReplayStore(tmp_path) as store:
        assert (uids(store), store.skipped) == ([1, 2, 4], ())


def test_a_writer_killed_while_it_overwrites_leaves_no_mixed_episode(tmp_path):
    killed(
        tmp_path,
        """
        store = ReplayStore(folder, LAYOUT, capacity(15))
        record(store, 1, 4); record(store, 2, 4); record(store, 3, 4)
        store.begin(frame(4, 0))
        """,
    )
    with ReplayStore(tmp_path) as store:
        assert uids(store) == [2, 3]
        batch = store.sample(64, np.random.default_rng(0), nstep=1, gamma=0.9, stack=2)
        check(batch, [(int(f[-1, 0]), int(f[-1, 1]) + 1) for f in batch.observation], 1, 0.9, 2)


@pytest.mark.parametrize("name", ["frames.bin", "steps.bin"])
def test_a_truncated_file_costs_the_episodes_beyond_it_for_good(tmp_path, name):
    with ReplayStore(tmp_path, LAYOUT) as store:
        for uid in (1, 2, 3):
            record(store, uid, 5)
        size = LAYOUT.frame_bytes if name == "frames.bin" else LAYOUT.step_dtype.itemsize
    os.truncate(tmp_path / name, 8 * size + 3)
    with ReplayStore(tmp_path, read_only=True) as store:
        assert uids(store) == [1]
    with ReplayStore(tmp_path) as store:
        assert uids(store) == [1]
        assert len(store.skipped) == 2
        assert f"episode 1: {name} ends before row 8, row 11 expected" in store.skipped
        record(store, 4, 5)
    with ReplayStore(tmp_path) as store:  # the file is long again, with a hole
        assert (uids(store), store.skipped) == ([1, 4], ())
        batch = store.sample(64, np.random.default_rng(0), nstep=2, gamma=0.9, stack=2)
        check(batch, [(int(f[-1, 0]), int(f[-1, 1]) + 1) for f in batch.observation], 2, 0.9, 2)


@pytest.mark.parametrize(
    "broken",
    ['{"episode": 1, "first": 6, "ro', "{}", '{"episode": 1, "first": -6, "rows": 6}', "\x00\x00", "long" * 99],
)
@pytest.mark.parametrize("torn", [False, True])
def test_broken_lines_of_the_journal_are_skipped_and_named(tmp_path, broken, torn):
    with ReplayStore(tmp_path, LAYOUT) as store:
        for uid in (1, 2, 3):
            record(store, uid, 5)
    journal = tmp_path / "episodes.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], broken, lines[2]]) + "\n" if not torn else f"{lines[0]}\n{broken}")
    with ReplayStore(tmp_path) as store:
        assert uids(store) == ([1] if torn else [1, 3])
        assert sum(text.startswith("episodes.jsonl line 2: ") for text in store.skipped) == 1
        record(store, 5, 3)
    with ReplayStore(tmp_path) as store:
        assert uids(store) == ([1, 5] if torn else [1, 3, 5])
        assert sum("line" in text for text in store.skipped) == (0 if torn else 1)
        batch = store.sample(64, np.random.default_rng(0), nstep=2, gamma=0.9, stack=2)
        check(batch, [(int(f[-1, 0]), int(f[-1, 1]) + 1) for f in batch.observation], 2, 0.9, 2)


def test_an_episode_longer_than_the_ring_is_skipped(tmp_path):
    with ReplayStore(tmp_path, LAYOUT, capacity(10)) as store:
        record(store, 1, 5)
    with (tmp_path / "episodes.jsonl").open("a") as journal:
        journal.write(json.dumps({"episode": 1, "first": 6, "rows": 11}) + "\n")
    with ReplayStore(tmp_path, read_only=True) as store:
        assert store.skipped == ("episodes.jsonl line 2: episode 1 of 11 rows, the store has 10",)
        assert uids(store) == [1]
    with pytest.raises(ReplayError, match=r"frames\.bin is missing"):
        (tmp_path / "frames.bin").unlink()
        ReplayStore(tmp_path, read_only=True)


def test_the_store_imports_no_torch():
    code = "import sys, v2r_core.rl.replay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_batches_are_tuples_of_arrays(tmp_path):
    with ReplayStore(tmp_path, LAYOUT) as store:
        record(store, 1, 5)
        batch = store.sample(4, np.random.default_rng(0), nstep=2, gamma=0.9, stack=3)
    assert isinstance(batch, Batch)
    shapes = [part.shape for part in batch]
    assert shapes == [(4, 3, 2), (4, 3), (4,), (4,), (4, 3, 2)]
    assert {part.dtype for part in batch} == {np.dtype("float32")}
