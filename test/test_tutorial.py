"""docs/tutorial.md, run as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
LEARNED = "From ten videos to a live reward"
POLICY = "From a demonstration to a policy"
ALONE = (LEARNED, POLICY)
"""The sections that stand by themselves."""


def script(title: str = "") -> str:
    """All bash and python blocks in their order as one bash script: of one section, or of all but those in `ALONE`."""
    sections = re.split(r"^## ", TUTORIAL.read_text(), flags=re.MULTILINE)
    heads = [section.partition("\n")[0] for section in sections]
    chosen = [
        section
        for section, head in zip(sections, heads, strict=True)
        if (title in head if title else not any(other in head for other in ALONE))
    ]
    parts = ["set -euo pipefail"]
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", "\n".join(chosen), flags=re.DOTALL):
        parts.append(code if language == "bash" else f"python - <<'END_OF_PYTHON'\n{code}END_OF_PYTHON")
    return "\n".join(parts)


def run(commands: str, folder: Path) -> Path:
    """Runs a script in a folder; returns the folder that the tutorial writes to."""
    pytest.importorskip("rclpy", reason="the tutorial plays a live graph")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "out" / "tour"


def summary(folder: Path) -> dict[str, Any]:
    """What `v2r score` says of a video."""
    result: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(600)
def test_tutorial_runs_as_written(tmp_path: Path) -> None:
    tour = run(script(), tmp_path)
    # What the text promises.
    assert summary(tour / "success_2")["final_progress"] > 0.95
    assert 0.5 < summary(tour / "half")["final_progress"] < 0.85
    assert set(summary(tour / "other")["status"]) == {"out_of_distribution"}
    assert (tour / "uvd" / "overlay.mp4").stat().st_size > 10_000
    assert (tour / "subgoals" / "subgoals.png").is_file()
    assert (tour / "demo" / "reward.png").is_file()
    assert (tour / "labelled" / "metadata.yaml").read_text().count("/labels/reward") == 1
    pair = (tour / "pair_labelled" / "metadata.yaml").read_text()
    assert all(pair.count(f"/reward_node/progress/{camera}") == 1 for camera in ("front", "wrist"))
    assert len(list((tour / "labels" / "labels").glob("*.parquet"))) == 5
    assert len(list((tour / "labels" / "overlays").glob("*.mp4"))) == 5
    assert (tour / "labels_ray" / "labels" / "half.mp4.parquet").is_file()
    assert "away.mp4" in (tour / "report.html").read_text()
    assert (tour / "labels.rrd").stat().st_size > 100_000
    assert list((tour / "dataset_videos").rglob("*.mp4"))
    assert (tour / "demonstrations_labelled" / "sarm_progress.parquet").is_file()
    assert summary(tour / "episode_1")["frames"] > 100
    assert (tour / "baseline" / "goal.png").is_file()
    assert (tour / "labels_baseline" / "overlays" / "half.mp4").is_file()


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(600)
def test_ten_videos_become_a_live_reward_as_written(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the training side is not installed")
    commands = script(LEARNED)
    assert [line for line in commands.splitlines() if line.startswith("v2r ")], "the section has another title now"
    tour = run(commands, tmp_path)
    (model,) = json.loads((tour / "report" / "report.json").read_text())["models"]
    assert model["metrics"]["auroc"]["value"] == 1
    assert model["metrics"]["voc_success"]["value"] > 0.9
    assert (tour / "report" / "report.html").stat().st_size > 20_000
    half = summary(tour / "half_time")
    assert half["reward"] == "time"
    assert 0.5 < half["final_progress"] < 0.9


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_demonstration_becomes_a_policy_as_written(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the training side is not installed")
    pytest.importorskip("metaworld", reason="the simulators are not installed")
    commands = script(POLICY)
    assert [line for line in commands.splitlines() if line.startswith("v2r rl ")], "the section has another title now"
    tour = run(commands, tmp_path)
    assert len(list((tour / "door").glob("*.mp4"))) == 6
    report = json.loads((tour / "door_run" / "eval.json").read_text())
    assert report["episodes"] == 2 and report["unpaid"] < 20
    assert json.loads((tour / "door_policy" / "policy.json").read_text())["rate"] == pytest.approx(26.67, abs=0.01)
