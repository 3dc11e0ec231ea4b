"""`v2r decompose`: a picture and the numbers of the subgoals, for any video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clip_writer import write_video
from PIL import Image

from v2r_core.cli.decompose import Decompose
from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, flat
from v2r_core.rewards.uvd import decompose
from v2r_core.video import open_video


def report_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "subgoals.json").read_text())


def test_picture_and_numbers_are_those_of_the_decomposition(
    clip: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["decompose", str(clip), "--model", str(tiny_bundle), "--min-interval", "5", "--out", str(out)]
    assert main(words) == 0
    with open_video(clip) as video:
        embeddings = flat(Scorer(load_bundle(tiny_bundle), "vip").embed(video))
        stamps = np.asarray(video.stamps) - video.stamps[0]
    expected = decompose(embeddings, min_interval=5).indices.tolist()
    report = report_of(out)
    assert report["frames"] == len(stamps) == 40
    assert report["subgoals"] == expected
    assert expected[-1] == 39
    np.testing.assert_allclose(report["seconds"], stamps[expected], atol=1e-6)
    with Image.open(out / "subgoals.png") as picture:
        width, height = picture.size
        colours = len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))
    assert width > 1000 and height > 300
    assert colours > 100
    assert str(expected[-1]) in capsys.readouterr().out


def test_settings_reach_the_decomposition(tiny_bundle: Path, tmp_path: Path) -> None:
    numbered = write_video(tmp_path / "numbered.mp4")
    found = {}
    for interval in (2, 39):
        out = tmp_path / str(interval)
        Decompose(str(numbered), out, tiny_bundle, min_interval=interval, gamma=1.0).run()
        found[interval] = report_of(out)["subgoals"]
    assert len(found[2]) > 1
    assert found[39] == [39]


@pytest.mark.parametrize("frames", [1, 4])
def test_a_video_too_short_to_split_has_its_end_as_the_only_goal(
    frames: int, tiny_bundle: Path, tmp_path: Path
) -> None:
    short = write_video(tmp_path / "short.mp4", count=frames)
    Decompose(str(short), tmp_path / "out", tiny_bundle).run()
    assert report_of(tmp_path / "out")["subgoals"] == [frames - 1]
    assert (tmp_path / "out" / "subgoals.png").is_file()


def test_what_cannot_be_used_is_named(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decompose", str(tmp_path / "nothing.mp4"), "--model", str(tiny_bundle)]) == 1
    assert "nothing.mp4" in capsys.readouterr().err
    assert main(["decompose", str(write_video(tmp_path / "a.mp4", count=3)), "--model", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
