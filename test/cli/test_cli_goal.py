from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_core.cli.main import main
from v2r_core.deploy import own_goal
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.own_goal import read_goal_pictures
from v2r_core.deploy.stream import Scorer
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.rewards.goal import goal_from_demonstration, load_goal
from v2r_core.video.source import open_video
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


def test_a_goal_inside_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is in force where no other is, the overlay shows its pictures, and the next one takes its place."""
    clip = tmp_path / "there_and_back.mp4"
    write_video(clip, [*moving_square(), *moving_square()[::-1], *moving_square()], 30)
    bundle = write_tiny_bundle(tmp_path / "bundle", "uvd")
    words = ["goal", str(clip), "--into", str(bundle)]
    assert main(words) == 0
    inside = load_bundle(bundle)
    goal = load_goal(bundle / "goal.safetensors")
    pictures = [f"goal_{number}.png" for number in range(1, len(goal.milestones) + 1)]
    assert inside.manifest.goal == "goal.safetensors"
    assert len(pictures) > 1
    assert {"goal.safetensors", "README.md", *pictures} < set(inside.manifest.files)
    assert "`goal.safetensors`" in (bundle / "README.md").read_text()
    shown = read_goal_pictures(bundle, goal)
    with open_video(clip) as video:
        for number, picture in zip(goal.milestone_frames.tolist(), shown, strict=True):
            np.testing.assert_allclose(picture.astype(float), video[number], atol=1)
    assert Scorer(inside).goal is not None
    overlay = tmp_path / "overlay.mp4"
    labels = VideoLabeller(LabellerOptions(bundle)).label(VideoTask(str(clip), "clip", None, overlay))
    assert labels.origin.goal_source == "bundle"
    with open_video(overlay) as video:
        # The walking square is far from its goal: only a picture of the goal is bright in the right upper corner.
        assert video[5][15:85, 400:460].mean() > 75
    capsys.readouterr()
    assert main(words) == 1
    assert "has the goal goal.safetensors already; --force replaces it" in capsys.readouterr().err
    assert main([*words, "--reward", "vip", "--force"]) == 0
    assert sorted(path.name for path in bundle.glob("goal*")) == ["goal.png", "goal.safetensors"]
    assert "goal_1.png" not in load_bundle(bundle).manifest.files


@pytest.mark.parametrize("fails", ["pictures", "card", "record"])
def test_a_bundle_is_one_whenever_it_stops(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert main(["goal", str(clip), "--into", str(bundle)]) == 0

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    scorer = Scorer(load_bundle(bundle))
    goal = scorer.goal_from_frames([moving_square()[0]], "other")
    if fails == "record":
        calls = []
        real = own_goal.write_manifest
        monkeypatch.setattr(
            own_goal, "write_manifest", lambda *a: (calls.append(a), real(*a) if len(calls) < 2 else stop())
        )
    else:
        monkeypatch.setattr(own_goal, {"pictures": "write_goal_pictures", "card": "write_card"}[fails], stop)
    with pytest.raises(OSError, match="No space"):
        own_goal.embed_goal(load_bundle(bundle), goal, [moving_square()[0]], force=True)
    monkeypatch.undo()
    assert load_bundle(bundle).manifest.goal is None
    assert own_goal.embed_goal(load_bundle(bundle), goal, [moving_square()[0]]).manifest.goal == "goal.safetensors"


def test_a_goal_of_another_encoder_does_not_get_into_a_bundle(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert main(["goal", str(clip), "--into", str(bundle)]) == 0
    before = load_bundle(bundle).sha256
    embeddings = np.random.default_rng(0).normal(size=(30, 1, 7)).astype(np.float32)
    goal_from_demonstration(embeddings, "other").save(tmp_path / "other.safetensors")
    capsys.readouterr()
    assert main(["goal", str(tmp_path / "other.safetensors"), "--into", str(bundle), "--force"]) == 1
    said = capsys.readouterr().err
    assert "'other.safetensors " in said and "has embeddings of length 7" in said
    assert load_bundle(bundle).sha256 == before


def test_only_executions_need_a_long_demonstration(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "bundle"))
    short = tmp_path / "short.mp4"
    write_video(short, moving_square()[:5], 30)
    words = ["goal", str(short), "--model", bundle, "--out", str(tmp_path / "goal.safetensors")]
    assert main(words) == 0
    assert len(load_goal(tmp_path / "goal.safetensors").demonstration) == 5
    assert main([*words, "--executions", str(clip)]) == 1
    assert "no demonstration of at least 8 frames to compare executions with" in capsys.readouterr().err


def test_refusals(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "bundle"))
    assert main(["goal", str(clip), "--model", bundle, "--out", str(tmp_path / "goal.npz")]) == 1
    assert "a goal is a .safetensors file" in capsys.readouterr().err
    assert main(["goal", str(tmp_path / "no.mp4"), "--model", bundle, "--out", str(tmp_path / "g.safetensors")]) == 1
    assert "no.mp4" in capsys.readouterr().err
    assert main(["goal", str(clip), "--model", bundle]) == 1
    assert "either --out FILE.safetensors or --into BUNDLE" in capsys.readouterr().err
    assert main(["goal", str(clip), "--into", bundle, "--out", str(tmp_path / "g.safetensors")]) == 1
    assert "either --out" in capsys.readouterr().err
    assert main(["goal", str(clip), "--into", bundle, "--model", str(tmp_path)]) == 1
    assert "leave --model away" in capsys.readouterr().err
    assert load_bundle(bundle).manifest.goal is None
