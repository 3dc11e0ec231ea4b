"""`v2r eval reward`: report files, controls, and paths that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from episode_data import write_episodes
from tiny_bundle import write_tiny_bundle

from v2r_core.cli import eval_reward
from v2r_core.cli.eval_reward import IMAGENET, NOVELTY, EvalReward, _parameter
from v2r_core.deploy.folder import BundleError


@pytest.mark.slow
def test_report_with_all_controls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = eval_reward.novelty_control
    monkeypatch.setattr(eval_reward, "novelty_control", lambda frames, seed: train(frames, seed, steps=5))
    write_episodes(tmp_path / "train", (0,), ("expert",))
    data = write_episodes(tmp_path / "heldout", (7,), ("expert", "half"))
    bundles = [write_tiny_bundle(tmp_path / name, reward) for name, reward in (("a", "vip"), ("b", "uvd"))]
    command = EvalReward(tuple(bundles), data, tmp_path / "out", perturbed=2, per_group=1)
    assert command.run() == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    names = [model["name"] for model in found["models"]]
    assert names == ["a", "b", "pixels", "random", IMAGENET, "frame number", NOVELTY]
    assert [model["control"] for model in found["models"]] == [False] * 2 + [True] * 5
    assert found["models"][0]["metrics"]["auroc"]["value"] == 1
    assert (tmp_path / "out" / "report.html").stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert "voc_success" in printed and "report.html" in printed


def test_goals_can_be_named_and_controls_left_away(tmp_path: Path, tiny_bundle: Path) -> None:
    goals = write_episodes(tmp_path / "demonstrations", (0,), ("expert",))
    data = write_episodes(tmp_path / "heldout", (7,), ("expert",), ("right",))
    EvalReward((tiny_bundle,), data, tmp_path / "out", goals=goals, controls=False, perturbed=0).run()
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "demonstrations" in found["data"]["goals"]
    assert [model["name"] for model in found["models"]] == ["tiny"]
    assert found["models"][0]["metrics"]["auroc"]["why_not"].startswith("needs labels")


def test_wrong_paths(tmp_path: Path, tiny_bundle: Path) -> None:
    data = write_episodes(tmp_path / "heldout", (7,), ("expert",), ("right",))
    with pytest.raises(ValueError, match="no model given"):
        EvalReward((), data).run()
    with pytest.raises(ValueError, match="no such folder"):
        EvalReward((tiny_bundle,), tmp_path / "nothing").run()
    write_episodes(tmp_path / "train", (0,), ("expert",), ("right",))
    with pytest.raises(BundleError, match="bundle"):
        EvalReward((tmp_path,), data, controls=False).run()
    with pytest.raises(ValueError, match="given twice"):
        EvalReward((tiny_bundle, tiny_bundle), data, controls=False).run()


def test_parameters_of_the_judged_reward_are_read_and_checked(tmp_path: Path, tiny_bundle: Path) -> None:
    data = write_episodes(tmp_path / "heldout", (7,), ("expert", "half"), ("right",))
    EvalReward((tiny_bundle,), data, tmp_path / "out", controls=False, perturbed=0, set=("compat=official",)).run()
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["models"][0]["about"]["parameters"] == "compat = official"
    with pytest.raises(ValueError, match="no parameter 'colour'"):
        EvalReward((tiny_bundle,), data, tmp_path / "out", controls=False, set=("colour=red",)).run()
    assert dict(map(_parameter, ("mode=conditional", "skip_step=24", "std=0.5"))) == {
        "mode": "conditional",
        "skip_step": 24,
        "std": 0.5,
    }
    with pytest.raises(ValueError, match="name=value expected"):
        _parameter("mode")
