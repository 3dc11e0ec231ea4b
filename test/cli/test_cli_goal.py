from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_core.cli.main import main
from v2r_core.rewards.goal import load_goal
from v2r_core.video.writing import write_video


def test_a_goal_of_several_executions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = moving_square()
    write_video(tmp_path / "demo.mp4", frames, 10)
    Path("more").mkdir()
    # The same, but darker: another execution that lies off the demonstration.
    write_video(tmp_path / "more/darker.mp4", [(frame * 0.6).astype(np.uint8) for frame in frames], 10)
    bundle = str(write_tiny_bundle(tmp_path / "bundle"))
    assert main(["goal", "demo.mp4", "--model", bundle, "--out", "alone.safetensors"]) == 0
    assert main(["goal", "demo.mp4", "--model", bundle, "--executions", "more", "--out", "goals/goal.safetensors"]) == 0
    assert "1 executions make the threshold" in capsys.readouterr().out.replace("\n", " ")
    alone, goal = load_goal("alone.safetensors"), load_goal("goals/goal.safetensors")
    assert goal.uncertainty_threshold > 1.2 * alone.uncertainty_threshold
    score = ["score", "more/darker.mp4", "--model", bundle, "--json", "--out", "score", "--goal"]
    statuses = {}
    for name in ("alone.safetensors", "goals/goal.safetensors"):
        assert main([*score, name]) == 0
        statuses[name] = json.loads(capsys.readouterr().out)["status"]
    assert statuses["alone.safetensors"]["out_of_distribution"] > 0
    assert "out_of_distribution" not in statuses["goals/goal.safetensors"]


def test_refusals(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "bundle"))
    assert main(["goal", str(clip), "--model", bundle, "--out", str(tmp_path / "goal.npz")]) == 1
    assert "a goal is a .safetensors file" in capsys.readouterr().err
    assert main(["goal", str(tmp_path / "no.mp4"), "--model", bundle, "--out", str(tmp_path / "g.safetensors")]) == 1
    assert "no.mp4" in capsys.readouterr().err
