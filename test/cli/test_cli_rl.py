from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_video import moving_square

from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.policy import load_policy
from v2r_core.video.writing import write_video

BLOB = ["--env", "gym:toy_blob:Blob-v0", "--horizon", "60", "--camera", "64", "--reward", "dense"]
SHORT = ["--steps", "180", "--eval-every", "120", "--eval-episodes", "2", "--threads", "1", "--seed-frames", "60"]


@pytest.mark.slow
def test_from_videos_to_a_policy_for_the_robot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_video(tmp_path / f"videos{number}.mp4", moving_square(), 10)
    observe = ["rl", "observe", "--data", "videos0.mp4", "videos1.mp4", "--out", "eyes", "--size", "64", "--dim", "8"]
    assert main(observe) == 0
    assert load_bundle("eyes").manifest.encoder.embedding_dim == 8

    train = ["rl", "train", *BLOB, *SHORT, "--observation", "eyes", "--batch-size", "16", "--out", "run"]
    assert main(train) == 0
    assert main([*train, "--resume"]) == 0  # nothing is left to do
    assert main(train) == 1
    assert "there is a run already" in capsys.readouterr().err
    assert sorted(path.name for path in Path("run/videos").iterdir()) == ["step-00000120.mp4", "step-00000180.mp4"]

    assert main(["rl", "eval", "run", "--episodes", "2", "--out", "eval.json", "--video", "eval.mp4"]) == 0
    report = json.loads(Path("eval.json").read_text())
    assert report["episodes"] == 2 and 0 <= report["success"] <= 1
    assert Path("eval.mp4").stat().st_size > 1000

    assert main(["export", "run", "--out", "policy", "--name", "mover"]) == 0
    manifest = load_policy("policy").manifest
    assert (manifest.name, manifest.action_dim, manifest.observation) == ("mover", 2, "embedding")
    assert manifest.rate == pytest.approx(20 / 3)


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", "fly"]) == 1
    assert "no verb 'fly' of rl; there are train, eval, observe" in capsys.readouterr().err
    assert main(["rl", "train", *BLOB, "--out", str(tmp_path / "run")]) == 1
    assert "v2r rl observe makes one" in capsys.readouterr().err
    assert main(["rl", "train", *BLOB, "--preset", "huge", "--out", str(tmp_path / "run")]) == 1
    assert "no preset 'huge'; there are paper, " in capsys.readouterr().err
    assert main(["rl", "eval", str(tmp_path)]) == 1
    assert "give the folder" in capsys.readouterr().err
