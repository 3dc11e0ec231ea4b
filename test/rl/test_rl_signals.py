"""Runs of `v2r rl train` that are told to stop, as a terminal, a service manager or a lack of memory does it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from v2r_core.cli.main import main
from v2r_core.rl import loop
from v2r_core.rl.rollouts import Rollouts
from v2r_core.training.checkpoint import latest_checkpoint, step_of
from v2r_core.training.log import read_metrics

WORDS = shlex.split(
    "rl train --env gym:toy_blob:Blob-v0 --horizon 60 --camera 32 --reward dense --preset tiny-pixels --size 32 "
    "--channels 4 --hidden-dim 16 --feature-dim 8 --batch-size 8 --seed-frames 40 --exploration-steps 10 --envs 2 "
    "--threads 1 --cpu --no-video --eval-every 0 --eval-episodes 1 --save-every 1000000 --steps 1000000"
)
PATIENCE = 90.0


@contextmanager
def training(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a session and a process group of its own, with its first episodes behind it."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "v2r_core.cli", *WORDS, "--out", str(run)],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=(run.parent / "said").open("wb"),
    )
    try:
        wait(lambda: (run / "metrics.jsonl").is_file() and len(read_metrics(run)) >= 2)
        yield process
    finally:
        for number in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)


def session(number: int) -> list[int]:
    """Processes of a session that live: whatever group they are in, they came from the run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, of, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(of) == number and state != "Z":
                    found.append(int(folder.name))
    return found


def losses(run: Path) -> list[dict[str, float | None]]:
    return [{key: value for key, value in line.items() if key != "steps_per_s"} for line in read_metrics(run)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves(number: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        os.killpg(process.pid, number)
        assert process.wait(PATIENCE) == 0, (tmp_path / "said").read_text()
        wait(lambda: not session(process.pid))
    stopped = step_of(latest_checkpoint(run))
    assert f"signal {int(number)}: saving at step {stopped}" in (tmp_path / "said").read_text()
    # It goes on with the numbers of one that was never stopped.
    further = ["--stop-after", str(stopped + 240)]
    assert main([*WORDS, *further, "--out", str(run), "--resume"]) == 0
    assert main([*WORDS, *further, "--out", str(tmp_path / "whole")]) == 0
    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_no_environment_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    with training(tmp_path / "run") as process:
        assert len(session(process.pid)) >= 3
        process.kill()
        wait(lambda: not session(process.pid))


def dying(monkeypatch: pytest.MonkeyPatch, also: Callable[[], None]) -> list[Rollouts]:
    """The process of an environment is killed once, at the third step of the run; gives all rollouts that are made."""
    made: list[Rollouts] = []

    class Dying(Rollouts):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)
            self.steps = 0

        def send(self, actions: Sequence[NDArray[np.float32]]) -> None:
            self.steps += 1
            if self.steps == 3 and len(made) == 1:
                self._envs.processes[0].kill()
                self._envs.processes[0].join()
                also()
            super().send(actions)

    monkeypatch.setattr(loop, "Rollouts", Dying)
    return made


def test_an_environment_that_is_killed_loses_its_episode_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dying(monkeypatch, lambda: None)
    assert main([*WORDS, "--stop-after", "120", "--out", str(tmp_path / "run")]) == 0
    assert len(made) == 2
    assert "step 8: the process of an environment was killed, or crashed" in " ".join(capsys.readouterr().err.split())
    assert step_of(latest_checkpoint(tmp_path / "run")) == 120


def test_a_signal_that_ended_the_environments_too_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A service manager sends it to every process of its group of control.
    made = dying(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main([*WORDS, "--out", str(tmp_path / "run")]) == 0
    assert len(made) == 1, "nothing is started again"
    assert step_of(latest_checkpoint(tmp_path / "run")) == 8
    assert main([*WORDS, "--stop-after", "130", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [120, 120]
