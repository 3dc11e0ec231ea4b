"""`v2r eval probe` on tiny videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expert_data import write_experts

from v2r_core.cli.eval import open_embedder
from v2r_core.cli.main import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_experts(tmp_path / "experts")


def test_robot_probe_of_a_bundle_and_pixels(
    data: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports" / "robot.json"
    words = ["eval", "probe", "--model", "pixels", str(tiny_bundle), "--data", str(data), "--frames", "6"]
    assert main([*words, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["kind"], report["frames"]) == ("robot", 6)
    assert set(report["models"]) == {"pixels", str(tiny_bundle)}
    for model in report["models"].values():
        assert model["gripper"]["r2"][0] > 0.5
        assert set(model["objects"]) == {"go", "return"}
    assert "mean of both" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_classes_are_the_tasks(kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classes.json"
    words = ["eval", "probe", "--model", "pixels", "--data", str(data), "--kind", kind, "--out", str(out)]
    assert main([*words, "--epochs", "5", "--views", "2"]) == 0
    report = json.loads(out.read_text())
    assert report["models"]["pixels"]["top5"] == 100
    assert ("protocol" in report) == (kind == "linear")
    assert ("only 5 steps" in capsys.readouterr().out) == (kind == "linear")


def test_undefined_numbers_become_null(data: Path, tmp_path: Path) -> None:
    import numpy as np

    for file in (data / "heldout").glob("go*.npz"):
        with np.load(file) as arrays:
            changed = {**arrays, "object": np.zeros_like(arrays["object"])}
        np.savez(file, **changed)
    out = tmp_path / "robot.json"
    assert main(["eval", "probe", "--model", "pixels", "--data", str(data), "--out", str(out)]) == 0
    report = json.loads(out.read_text())["models"]["pixels"]
    assert report["undefined"] == 3
    assert report["objects"]["go"]["r2"] == [None, None, None]
    assert report["object_mean"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model"], "no model"),
        (["--model", "nothing"], "nothing"),
        (["--model", "."], "neither a bundle"),
        (["--model", "pixels", "--frames", "0"], "at least 1"),
    ],
)
def test_refusals(
    words: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "probe", "--data", str(data), *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_bundle_has_one_output(tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match="--blocks"):
        open_embedder(str(tiny_bundle), blocks=4)


def test_the_kind_of_evaluation_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["eval"])
    assert caught.value.code == 2
    assert "probe" in capsys.readouterr().err
