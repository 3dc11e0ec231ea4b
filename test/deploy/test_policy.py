"""A policy is used whole and unchanged or not at all, and gives finite actions in [-1, 1] or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import embed
from tiny_policy import GAIN, MARK, blob, linear, matrix, seeker, write_linear, write_seeker

from v2r_core.deploy.folder import BundleError
from v2r_core.deploy.policy import MANIFEST, Policy, PolicyError, check_frames, load_policy
from v2r_core.video.resize import Preprocess, resize_frame


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content.update(changes)
    (folder / MANIFEST).write_text(json.dumps(content))


def run(folder: Path) -> Policy:
    return Policy(load_policy(folder), providers=("cpu",))


def test_pixels_become_an_action(tmp_path: Path) -> None:
    policy = run(write_seeker(tmp_path / "p"))
    assert (policy.action_dim, policy.rate, policy.provider) == (2, 20.0, "CPUExecutionProvider")
    near = (MARK[0] - 0.1, MARK[1] + 0.05)
    action = policy.act(blob(*near))
    assert action.dtype == np.float32
    assert action == pytest.approx([GAIN * 0.1, -GAIN * 0.05], abs=0.02)
    assert policy.act(blob(-0.8, 0.8)) == pytest.approx([1, -1])  # clipped


def test_embeddings_are_stacked_oldest_first_and_the_first_is_repeated(tmp_path: Path) -> None:
    policy = run(write_linear(tmp_path / "p"))
    frames = np.random.default_rng(1).integers(0, 256, (5, 40, 56, 3), dtype=np.uint8)
    rows = embed(np.stack([resize_frame(frame, Preprocess(32)) for frame in frames]))
    stacks = [np.concatenate([rows[max(i - 2, 0)], rows[max(i - 1, 0)], rows[i]]) for i in range(5)]
    expected = [np.clip(stack @ matrix(), -1, 1) for stack in stacks]
    assert np.ptp([action[0] for action in expected]) > 1e-3  # else the order would not show
    np.testing.assert_allclose([policy.act(frame) for frame in frames], expected, atol=1e-5)
    policy.reset()
    np.testing.assert_allclose(policy.act(frames[0]), expected[0], atol=1e-5)


def test_the_stored_answer_is_that_of_the_documented_frames(tmp_path: Path) -> None:
    bundle = load_policy(write_linear(tmp_path / "p", seed=11))
    frames = check_frames(11, 32, 3)
    assert frames.shape == (4, 32, 32, 3)
    rows = embed(frames[1:])
    assert bundle.manifest.check.action == pytest.approx((rows.ravel() @ matrix()).tolist(), abs=1e-5)


def test_another_frameworks_answer_is_checked_when_writing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="self-check"):
        write_linear(tmp_path / "p", expected=[0.9, -0.9])
    assert not (tmp_path / "p" / MANIFEST).exists()


def test_nothing_that_is_not_finite_gets_out(tmp_path: Path) -> None:
    policy = run(write_seeker(tmp_path / "p"))
    with pytest.raises(PolicyError, match="finite"):
        policy.act(np.zeros((48, 48, 3), np.uint8))
    assert np.isfinite(policy.act(blob(0, 0))).all()


@pytest.mark.parametrize("name", ["actor.onnx", "encoder.onnx", "README.md"])
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    file = write_linear(tmp_path / "p") / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}.*sha256"):
        load_policy(tmp_path / "p")
    file.unlink()
    with pytest.raises(BundleError, match=f"{name}.*missing"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema_version": 9}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"encoder": "encoder.onnx"}, "exclude each other"),
        ({"action_dim": 3}, "action_dim is 3"),
        ({"files": {}}, "not listed"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(tmp_path: Path, changes: dict, word: str) -> None:
    write_seeker(tmp_path / "p")
    edit(tmp_path / "p", **changes)
    with pytest.raises(BundleError, match=word):
        load_policy(tmp_path / "p")


def test_graphs_for_another_image_size_stack_or_action_are_refused(tmp_path: Path) -> None:
    folder = write_seeker(tmp_path / "size")
    size = json.loads((folder / MANIFEST).read_text())["preprocess"] | {"size": 64, "resize_to": 64}
    edit(folder, preprocess=size)
    with pytest.raises(BundleError, match=r"\(3, 64, 64\)"):
        run(folder)
    edit(write_linear(tmp_path / "stack"), frame_stack=2)
    with pytest.raises(BundleError, match=r"\(96,\)"):
        run(tmp_path / "stack")
    folder = write_seeker(tmp_path / "action")
    edit(folder, action_dim=3, check={"seed": 0, "action": [0, 0, 0], "tolerance": 1.0})
    with pytest.raises(BundleError, match="3 finite numbers"):
        run(folder)


def test_a_policy_that_computes_something_else_here_is_refused(tmp_path: Path) -> None:
    edit(write_seeker(tmp_path / "p"), check={"seed": 0, "action": [0.9, -0.9], "tolerance": 1e-3})
    with pytest.raises(BundleError, match="self-check failed"):
        run(tmp_path / "p")


def test_writing_takes_paths_and_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(seeker())
    write_seeker(tmp_path / "p", actor=tmp_path / "a.onnx", quality={"success": 0.9})
    assert "success | 0.9" in (tmp_path / "p" / "README.md").read_text()
    with pytest.raises(BundleError, match="already"):
        write_seeker(tmp_path / "p")


@pytest.mark.parametrize("graph", [linear(), b"no graph"])
def test_graphs_that_do_not_do_what_is_said_are_not_written(tmp_path: Path, graph: bytes) -> None:
    with pytest.raises(BundleError):
        write_seeker(tmp_path / "p", actor=graph)
    assert not (tmp_path / "p" / MANIFEST).exists()


def test_a_folder_without_a_policy(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no policy\.json"):
        load_policy(tmp_path)


def test_no_torch(tmp_path: Path) -> None:
    code = "import sys, v2r_core.deploy.policy; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
