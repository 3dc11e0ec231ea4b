"""`v2r export` takes a name or a checkpoint, and what it writes loads and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from v2r_core.cli.main import main as v2r
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.encoders.checkpoints import resnet_backbone


@pytest.mark.slow
def test_a_vip_checkpoint_becomes_a_bundle_that_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet_backbone("resnet18", 16).eval()
    state = {f"module.convnet.{key}": value for key, value in network.state_dict().items()}
    torch.save({"vip": state}, tmp_path / "model.pt")
    out = tmp_path / "bundle"
    assert v2r(["export", str(tmp_path / "model.pt"), "--size", "64", "--out", str(out)]) == 0
    bundle = load_bundle(out)
    assert bundle.manifest.encoder.name.startswith("vip:resnet18")
    assert bundle.manifest.encoder.parity["fp32_max_rel_error"] <= 1e-4
    assert bundle.manifest.encoder.parity["fp16_min_cosine"] >= 0.999
    assert bundle.preprocess.mode == "crop"
    scorer = Scorer(bundle, providers=["cpu"])
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = network(((torch.from_numpy(frame) / 255 - mean) / std).permute(0, 3, 1, 2))
    np.testing.assert_allclose(scorer.session(frame), expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "word"), [("nonsense", "no encoder"), ("vip", "file"), ("timm:resnet18", "weights")])
def test_what_cannot_be_exported_is_refused_in_one_line(
    name: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert v2r(["export", name, "--out", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert word in error
    assert "Traceback" not in error
