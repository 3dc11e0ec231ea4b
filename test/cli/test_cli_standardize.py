"""`v2r standardize`: mean and deviation of a step reward, measured on experts and written into the bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_writer import write_video
from tiny_bundle import write_tiny_bundle
from torch import Tensor, nn

from v2r_core.cli.main import main
from v2r_core.cli.standardize import Standardize
from v2r_core.deploy.bundle import MANIFEST, Bundle, load_bundle, reward_spec, write_manifest
from v2r_core.deploy.card import CARD
from v2r_core.deploy.export_networks import export_networks
from v2r_core.deploy.folder import BundleError, describe_files
from v2r_core.deploy.stream import Scorer
from v2r_core.video import open_video

FRAMES, TOKENS, DIM, CODES = 3, 16, 3, 8
"""Of a window; codes of a frame: the tiny encoder gives 48 numbers."""


class Likelihood(nn.Module):
    """A video model that likes codes of a high number, and later frames more."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(factor * torch.arange(1.0, FRAMES + 1))

    def forward(self, codes: Tensor) -> Tensor:
        return codes.float().mean(dim=2) * self.weights - 5.0


@dataclass
class Network:
    module: nn.Module
    inputs: dict[str, Tensor] = field(default_factory=dict)
    output: str = "log_prob"


def viper_bundle(folder: Path, factor: float = 1.0) -> Path:
    """A bundle whose step reward is made of the brightness of a frame's blocks."""
    write_tiny_bundle(folder)
    codes = torch.arange(2 * FRAMES * TOKENS).reshape(2, FRAMES, TOKENS) % CODES
    grey = np.linspace(0, 1, CODES, dtype=np.float32)
    tensors = {
        "codebook": np.repeat(grey[:, None], DIM, axis=1),
        "quantization_threshold": np.array(10.0, np.float32),
    }
    parts = export_networks({"likelihood": Network(Likelihood(factor).eval(), {"codes": codes})}, tensors, folder)
    manifest = load_bundle(folder).manifest
    update = {
        "networks": parts.networks,
        "tensors": parts.tensors,
        "reward": reward_spec("viper", {"frames": FRAMES, "stride": 2, "mode": "joint"}),
        "files": describe_files(folder, [*manifest.files, *parts.files]),
    }
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def raw_rewards(bundle: Bundle, videos: list[Path]) -> np.ndarray:
    scorer = Scorer(bundle, providers=["cpu"])
    found = []
    for path in videos:
        with open_video(path) as video:
            found.append(scorer.score(video).curve.raw_reward)
    every = np.concatenate(found)
    return every[np.isfinite(every)]


def test_mean_and_deviation_of_the_experts_land_in_the_bundle(tmp_path: Path) -> None:
    folder = viper_bundle(tmp_path / "bundle")
    (tmp_path / "experts").mkdir()
    videos = [write_video(tmp_path / "experts" / f"{count}.mp4", count=count) for count in (12, 20)]
    before = load_bundle(folder)
    raw = raw_rewards(before, videos)
    assert len(raw) == 12 - 4 + 20 - 4
    assert main(["standardize", str(folder), "--data", str(tmp_path / "experts")]) == 0

    after = load_bundle(folder)
    parameters = after.manifest.reward.parameters
    assert parameters["mean"] == pytest.approx(raw.mean(), rel=1e-5)
    assert parameters["std"] == pytest.approx(raw.std(), rel=1e-5)
    assert parameters["frames"] == FRAMES and parameters["stride"] == 2
    assert after.manifest.quality["rewards standardized on"] == len(raw)
    assert after.sha256 != before.sha256
    assert after.manifest.files[CARD].sha256 != before.manifest.files[CARD].sha256

    scorer = Scorer(after, providers=["cpu"])
    with open_video(videos[1]) as video:
        curve = scorer.score(video).curve
    known = np.isfinite(curve.raw_reward)
    assert known.sum() == 16
    np.testing.assert_allclose(curve.reward[known], (curve.raw_reward[known] - raw.mean()) / raw.std(), rtol=1e-4)


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    folder = viper_bundle(tmp_path / "bundle")
    video = write_video(tmp_path / "expert.mp4", count=15)
    Standardize(folder, (video,)).run()
    first = json.loads((folder / MANIFEST).read_text())["reward"]
    Standardize(folder, (video,)).run()
    assert json.loads((folder / MANIFEST).read_text())["reward"] == first


def test_few_rewards_and_short_videos_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = viper_bundle(tmp_path / "bundle")
    videos = (write_video(tmp_path / "short.mp4", count=4), write_video(tmp_path / "long.mp4", count=9))
    assert Standardize(folder, videos).run() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 videos are too short" in printed
    assert "fewer than 100 rewards" in printed
    assert load_bundle(folder).manifest.quality["rewards standardized on"] == 5


def test_videos_that_are_all_too_short_are_refused_and_the_bundle_stays(tmp_path: Path) -> None:
    folder = viper_bundle(tmp_path / "bundle")
    before = load_bundle(folder).sha256
    with pytest.raises(ValueError, match="none is as long as the window of 5 frames"):
        Standardize(folder, (write_video(tmp_path / "short.mp4", count=4),)).run()
    assert load_bundle(folder).sha256 == before


def test_a_reward_that_never_changes_is_refused_and_the_bundle_stays(tmp_path: Path) -> None:
    folder = viper_bundle(tmp_path / "bundle", factor=0.0)
    before = load_bundle(folder).sha256
    with pytest.raises(BundleError, match="on every frame"):
        Standardize(folder, (write_video(tmp_path / "expert.mp4", count=9),)).run()
    assert load_bundle(folder).sha256 == before


def test_a_value_is_refused(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "expert.mp4", count=9)
    assert main(["standardize", str(tiny_bundle), "--data", str(video)]) == 1
    assert "'vip' is a value" in capsys.readouterr().err
