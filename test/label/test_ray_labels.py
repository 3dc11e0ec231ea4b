"""Labels from a real Ray of this machine: the same as without it, and no video takes others with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from clip_writer import write_video
from killing import deadly
from tiny_bundle import write_tiny_bundle

from v2r_core.cli.main import main
from v2r_core.label.cluster import TRIES
from v2r_core.label.outcome import Outcome
from v2r_core.label.pool import label_all
from v2r_core.label.video_labeller import LabellerOptions, VideoTask

ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = pytest.mark.slow
INTERRUPTIBLE = """
import signal, sys
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from v2r_core.cli.main import main
    sys.exit(main())
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            logging_level="error",
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture
def tasks(tmp_path: Path) -> list[VideoTask]:
    counts = (20, 30, 40, 25, 35)
    names = [f"{number}.mp4" for number in range(len(counts))]
    return [VideoTask(str(write_video(tmp_path / n, count=c)), n) for n, c in zip(names, counts, strict=True)]


def run(tasks: list[VideoTask], model: Path, workers: int = 0) -> dict[int, Outcome]:
    outcomes = list(label_all(tasks, LabellerOptions(model), workers, ray=""))
    found = {each.number: each for each in outcomes}
    assert len(found) == len(outcomes) == len(tasks)
    return found


def test_the_same_labels(tasks: list[VideoTask], tiny_bundle: Path, tmp_path: Path) -> None:
    tasks.append(VideoTask(str(tmp_path / "nothing.mp4"), "nothing"))
    overlay = tmp_path / "overlay.mp4"
    tasks[0] = VideoTask(tasks[0].source, tasks[0].name, "last", overlay)
    found = run(tasks, tiny_bundle)
    for each in label_all(tasks[:5], LabellerOptions(tiny_bundle)):
        labels = found[each.number].labels
        assert labels is not None
        assert each.labels is not None
        assert labels.origin == each.labels.origin
        np.testing.assert_array_equal(labels.curve.reward, each.labels.curve.reward)
        assert found[each.number].cpu_seconds > 0
    assert found[5].labels is None
    assert "no such file" in found[5].error
    assert overlay.stat().st_size > 1000
    assert ray.is_initialized(), "what was there before stays"


def test_a_model_that_does_not_load_is_said_once(tasks: list[VideoTask], tmp_path: Path) -> None:
    model = write_tiny_bundle(tmp_path / "model", factor=1.5)
    with pytest.raises(RuntimeError, match="cannot load the model: self-check failed"):
        run(tasks, model)


def test_an_actor_that_dies_costs_its_task(tasks: list[VideoTask], tiny_bundle: Path, tmp_path: Path) -> None:
    """It is tried again, for a node may have been lost for other reasons; the others get their labels."""
    write_video(tmp_path / "1.mp4", count=3000)
    with deadly(tmp_path / "1.mp4") as victims:
        found = run(tasks, tiny_bundle, workers=2)
    assert len(victims) == TRIES
    assert f"died {TRIES} times" in found[1].error
    assert [number for number, each in sorted(found.items()) if each.labels is not None] == [0, 2, 3, 4]


def test_from_the_command_line(tasks: list[VideoTask], tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    videos = [task.source for task in tasks]
    words = ["label", *videos, "--out", str(tmp_path / "out"), "--model", str(tiny_bundle), "--ray", "--workers", "1"]
    assert main(words) == 0
    assert "5 labelled" in " ".join(capsys.readouterr().out.split())  # a table breaks its lines where a path is long
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 5


def test_a_cluster_without_machines(tasks: list[VideoTask], tiny_bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(RuntimeError, match="neither a CPU nor a GPU"):
        run(tasks, tiny_bundle)


def test_a_cluster_that_goes_away(tasks: list[VideoTask], tiny_bundle: Path, monkeypatch) -> None:
    def gone(*_, **__) -> Iterator[dict]:
        raise ray.exceptions.RaySystemError("connection lost")
        yield {}

    monkeypatch.setattr(ray.data.Dataset, "iter_batches", gone)
    with pytest.raises(RuntimeError, match=r"Ray has given up: .*connection lost"):
        run(tasks, tiny_bundle)


@pytest.mark.parametrize("seconds", [0.0, 2.0, 5.0])
def test_an_interrupt_of_all_processes_ends_all_of_them(tmp_path: Path, tiny_bundle: Path, seconds: float) -> None:
    """As Ctrl-C in a terminal: before there is a Ray, while it starts, and while it labels. `seconds` after the start
    of its process, or for the last one, at the first label."""
    write_video(tmp_path / "0.mp4", count=1500)
    for number in range(1, 12):
        shutil.copy(tmp_path / "0.mp4", tmp_path / f"{number}.mp4")
    out = tmp_path / "out"
    process = subprocess.Popen(
        # Whoever runs the tests in the background has interrupts ignored.
        [sys.executable, "-c", INTERRUPTIBLE, "label", tmp_path, "--out", out, "--model", tiny_bundle, "--ray"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    manifest = out / "manifest.jsonl"
    wanted = 1 if seconds == 5.0 else 0
    while not manifest.exists() or manifest.stat().st_size < wanted:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(0 if wanted else seconds)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert said == ""
    assert [line for line in errors.splitlines() if "core_worker.cc" not in line] == [
        "v2r label: interrupted; the same command goes on from here"
    ]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_no_ray_there(tasks: list[VideoTask], tiny_bundle: Path) -> None:
    """Needs no cluster, so it comes last: it stops the one there is."""
    ray.shutdown()
    with pytest.raises(RuntimeError, match=r"no Ray at 127\.0\.0\.1:1"):
        list(label_all(tasks, LabellerOptions(tiny_bundle), ray="127.0.0.1:1"))
    with pytest.raises(RuntimeError, match="no Ray at auto"):
        list(label_all(tasks, LabellerOptions(tiny_bundle), ray="auto"))
