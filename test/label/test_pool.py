"""Many workers: what one of them does, whatever happens to it, is its own task's affair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from clip_writer import write_video
from killing import deadly
from pool_tasks import crash, die, doze, refuse
from tiny_bundle import write_tiny_bundle

from v2r_core.deploy.folder import BundleError
from v2r_core.label.pool import label_all
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.label.workers import run_all

HELPER = Path(__file__).with_name("pool_tasks.py")


def videos(folder: Path, *counts: int) -> list[VideoTask]:
    return [
        VideoTask(str(write_video(folder / f"{number}.mp4", count=count)), f"{number}.mp4")
        for number, count in enumerate(counts)
    ]


def children() -> list[psutil.Process]:
    """Workers; the tracker that Python keeps beside them does nothing but watch."""
    mine = psutil.Process().children(recursive=True)
    return [each for each in mine if "resource_tracker" not in " ".join(each.cmdline())]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_has_one_outcome(tmp_path: Path, tiny_bundle: Path, workers: int) -> None:
    tasks = videos(tmp_path, 20, 30, 40, 10)
    tasks.insert(1, VideoTask(str(tmp_path / "nothing.mp4"), "nothing"))
    outcomes = {each.number: each for each in label_all(tasks, LabellerOptions(tiny_bundle), workers)}
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert outcomes[1].labels is None
    assert "no such file" in outcomes[1].error
    alone = VideoLabeller(LabellerOptions(tiny_bundle))
    for number in (0, 2, 3, 4):
        labels, expected = outcomes[number].labels, alone.label(tasks[number])
        assert outcomes[number].error == ""
        assert labels is not None
        assert labels.origin == expected.origin
        np.testing.assert_array_equal(labels.curve.reward, expected.curve.reward)
        assert outcomes[number].cpu_seconds > 0
        assert 0 < outcomes[number].seconds < 20
    assert not children()


def test_no_tasks(tiny_bundle: Path) -> None:
    for workers in (0, 2):
        assert list(label_all([], LabellerOptions(tiny_bundle), workers)) == []
    with pytest.raises(ValueError, match="-1 workers"):
        next(label_all([VideoTask("a", "a")], LabellerOptions(tiny_bundle), -1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_that_does_not_load_is_said_once(tmp_path: Path, workers: int) -> None:
    """A wrong answer of the encoder: all hashes are right, so only the session finds out."""
    model = write_tiny_bundle(tmp_path / "model", factor=1.5)
    tasks = [VideoTask("a.mp4", "a")] * 5
    with pytest.raises(BundleError, match="self-check failed"):
        list(label_all(tasks, LabellerOptions(model), workers))
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        list(label_all(tasks, LabellerOptions(tmp_path / "nothing"), workers))
    assert not children()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_its_task(tmp_path: Path, tiny_bundle: Path, workers: int) -> None:
    tasks = videos(tmp_path, 30, 3000, 30, 30, 30)
    with deadly(Path(tasks[1].source)) as victims:
        outcomes = {each.number: each for each in label_all(tasks, LabellerOptions(tiny_bundle), workers)}
    assert len(victims) == 1
    assert "SIGKILL" in outcomes[1].error
    assert [number for number, each in sorted(outcomes.items()) if each.labels is not None] == [0, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_all_ways_to_die(number: signal.Signals) -> None:
    found = {each.number: each for each in run_all(partial(partial, crash, number), range(7), 2)}
    assert {key: each.result for key, each in found.items()} == {0: 0, 1: 1, 2: None, 3: 9, 4: None, 5: 25, 6: 36}
    assert number.name in found[2].error
    assert "exit code 3" in found[4].error


def test_workers_that_die_while_they_load() -> None:
    with pytest.raises(RuntimeError, match=r"while it loaded the model \(exit code 9\)"):
        list(run_all(die, range(7), 3))
    assert not children()


def test_a_long_task_holds_up_no_other() -> None:
    order = [each.number for each in run_all(partial(partial, doze), [1.5, 0.01, 0.01, 0.01, 0.01, 0.01], 2)]
    assert order[-1] == 0


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="TwoWordsError: no model"):
        list(run_all(refuse, range(3), 2))


def test_leaving_early_ends_the_workers() -> None:
    with closing(run_all(partial(partial, doze), [0.0, 60.0, 60.0], 2)) as answers:
        assert next(answers).number == 0
        assert len(children()) == 2
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert not children()


def started(count: int, at_once: bool = False) -> subprocess.Popen:
    """A process whose workers are in the middle of a long task, or about to be started."""
    process = subprocess.Popen(
        [sys.executable, HELPER, str(count), "at once" * at_once],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n", process.communicate()[1]
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_parent_is_the_end_of_all(number: signal.Signals) -> None:
    process = started(2)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(number)
    process.wait(5)
    _, alive = psutil.wait_procs(workers, 5)
    assert not alive
    process.communicate()


@pytest.mark.parametrize("wait", [None, 0.0, 0.1, 0.3])
def test_ctrl_c(wait: float | None) -> None:
    """As a terminal sends it: to all of them. The parent says so, the workers say nothing, and all are gone.

    Also while they start: they inherit that interrupts wait, so at no moment do they spill a traceback.
    """
    process = started(2, at_once=wait is not None)
    time.sleep(wait or 0)
    workers = psutil.Process(process.pid).children(recursive=True)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - start < 5
    assert errors.count("Traceback") == 1, errors
    assert "KeyboardInterrupt" in errors
    _, alive = psutil.wait_procs(workers, 5)
    assert not alive
