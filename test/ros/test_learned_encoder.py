"""From a video to a learned encoder to rewards on a topic."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_harness import NodeUnderTest, make_graph
from synthetic_video import moving_square

from v2r_msgs.msg import Reward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("mae", ["--size", "32"]),
        ("vjepa", ["--size", "32", "--frames", "4", "--stride", "1"]),
        ("moco", ["--size", "32", "--queue", "64"]),
    ],
)
def test_the_node_runs_what_was_trained(method: str, settings: list[str], tmp_path: Path, clip: Path) -> None:
    pytest.importorskip("accelerate", reason="the training side is not installed")
    from v2r_core.cli.main import main

    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    words = ["--preset", "tiny", "--data", str(clip), "--out", run, "--epochs", "2", "--batch-size", "8"]
    assert main(["train", method, *words, "--workers", "0", "--cpu", "--stop-after", "2", *settings]) == 0
    assert main(["export", run, "--out", bundle]) == 0
    frames = moving_square()
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(graph, model=bundle, goals_dir=str(tmp_path), goal=clip.name, providers=["cpu"])
        assert node.configure(), node.log()
        assert node.activate(), node.log()
        answers = [node.answer(frame) for frame in frames[:6]]
        assert {answer.status for answer in answers[1:]} <= {Reward.STATUS_OK, Reward.STATUS_OUT_OF_DISTRIBUTION}
        assert node.infos[-1].model_sha256
        assert graph.stop("reward_node") == {"reward_node": 0}
