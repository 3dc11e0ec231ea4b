"""`v2r score` from the command line to its files."""

import csv
import json
import math

import av
import numpy as np
import pytest
from PIL import Image
from synthetic_video import moving_square
from toy_rewards import LENGTH, write_learned_bundle

from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.goal import goal_from_images

COLUMNS = ["frame", "stamp", "reward", "value", "progress", "subgoal", "uncertainty", "status"]


@pytest.fixture
def run(tmp_path, tiny_bundle, clip, capsys):
    def call(*words, video=clip):
        out = tmp_path / "out"
        code = main(["score", str(video), "--model", str(tiny_bundle), "--out", str(out), *map(str, words)])
        printed = capsys.readouterr()
        if code:
            return code, printed.err, None, None
        with (out / "curve.csv").open() as file:
            rows = list(csv.DictReader(file))
        return code, printed.out, json.loads((out / "summary.json").read_text()), rows

    return call


def column(rows, name):
    return np.array([float(row[name]) for row in rows])


def test_towards_its_own_end(run, tmp_path):
    code, printed, summary, rows = run()
    assert code == 0
    assert "curve" not in printed or str(tmp_path) in printed.replace("\n", "")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == summary["frames"] == 40
    value, progress, reward = (column(rows, name) for name in ("value", "progress", "reward"))
    assert value[-1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(reward[1:], np.diff(value), atol=1e-5)
    assert math.isnan(reward[0])
    assert rows[0]["status"] == "warming_up"
    assert progress[-1] == 1
    assert summary["voc"] > 0.95
    assert summary["bumps"] < 0.1
    assert summary["goal_is_own_last_frame"] is True
    assert summary["status"] == {"ok": 39, "warming_up": 1}
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000
    assert not (tmp_path / "out" / "overlay.mp4").exists()


def test_json_is_the_summary_and_nothing_else(run, tiny_bundle):
    _, printed, summary, _ = run("--json")
    assert json.loads(printed) == summary
    assert summary["model"]["sha256"] == load_bundle(tiny_bundle).sha256
    assert summary["encoder_ms_per_frame"] > 0


def test_towards_an_image(run, tmp_path):
    Image.fromarray(moving_square()[-1]).save(tmp_path / "goal.png")
    _, _, summary, rows = run("--goal", tmp_path / "goal.png")
    assert summary["goal"] == "goal.png"
    assert summary["calibrated"] is False
    assert summary["final_progress"] is None
    assert np.isnan(column(rows, "progress")).all()
    assert summary["voc"] > 0.9


def test_towards_a_demonstration(run, clip):
    _, _, summary, rows = run("--goal", clip)
    assert summary["goal_is_own_last_frame"] is False
    assert summary["calibrated"] is True
    assert column(rows, "progress")[-1] == 1
    assert np.nanmax(column(rows, "uncertainty")) < 1


def test_a_strange_video_is_out_of_distribution(run, clip, tmp_path):
    folder = tmp_path / "strange"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)):
        Image.fromarray(image // 8 * 8).save(folder / f"{i}.png")
    _, printed, summary, rows = run("--goal", clip, video=folder)
    assert summary["status"] == {"out_of_distribution": 6}
    assert summary["voc"] is None
    assert summary["final_progress"] is None
    assert "not available" in printed
    assert np.isnan(column(rows, "reward")).all()


def test_towards_a_saved_goal(run, tmp_path, tiny_bundle):
    scorer = Scorer(load_bundle(tiny_bundle))
    goal = goal_from_images(scorer.embed(moving_square()[-1:]), "kept")
    goal.save(tmp_path / "kept.safetensors")
    assert run("--goal", tmp_path / "kept.safetensors")[2]["goal"] == "kept"


@pytest.mark.parametrize("reward", ["vip", "uvd", "pixel"])
def test_own_end_equals_the_same_video_as_demonstration(run, clip, reward):
    own = run("--reward", reward, "--goal", "last")[3]
    other = run("--reward", reward, "--goal", clip)[3]
    for name in COLUMNS[:-1]:
        np.testing.assert_allclose(column(own, name), column(other, name), atol=1e-5, err_msg=name)


def test_overlay(run, tmp_path):
    run("--overlay", "--reward", "uvd")
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert len(pictures) == 40
    assert pictures[0].shape == (408, 480, 3)
    bars = [(picture[360:, :, 1] > 120).mean() for picture in pictures]
    assert bars[-1] > bars[20] > bars[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--goal", "nothing.png"], "nothing.png"),
        (["--goal", "nothing.mp4"], "nothing.mp4"),
        (["--goal", "nothing.safetensors"], "nothing.safetensors"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_missing_is_named(run, words, message):
    code, error, _, _ = run(*words)
    assert code == 1
    assert message in error
    assert "Traceback" not in error


def test_a_broken_goal_image_is_named(run, tmp_path):
    (tmp_path / "goal.png").write_text("not a picture")
    code, error, _, _ = run("--goal", tmp_path / "goal.png")
    assert code == 1
    assert "goal.png: not an image" in error


@pytest.mark.parametrize("reward", ["viper", "diffusion"])
def test_a_step_reward_has_no_goal_value_or_progress_and_can_be_drawn(run, reward, tmp_path):
    bundle = write_learned_bundle(tmp_path / "learned", reward, 15.0)
    code, printed, summary, rows = run("--model", bundle, "--overlay")
    assert code == 0
    warm = (LENGTH[reward] - 1) * 2
    assert summary["status"] == {"ok": 40 - warm, "warming_up": warm}
    assert (summary["reward"], summary["goal"], summary["goal_is_own_last_frame"]) == (reward, None, False)
    assert summary["voc"] is None and summary["bumps"] is None and summary["final_progress"] is None
    assert "goal" in printed and "none" in printed
    found = column(rows, "reward")
    assert np.isnan(found[:warm]).all() and np.isfinite(found[warm:]).all()
    assert summary["mean_reward"] == pytest.approx(found[warm:].mean(), rel=1e-4)
    assert np.isnan(column(rows, "value")).all() and np.isnan(column(rows, "progress")).all()
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("goal", ["last", "clip"])
@pytest.mark.parametrize("reward", ["viper", "time"])
def test_a_goal_for_a_reward_that_has_none_is_refused(run, clip, goal, reward, tmp_path):
    bundle = write_learned_bundle(tmp_path / "learned", reward)
    code, error, _, _ = run("--model", bundle, "--goal", clip if goal == "clip" else goal)
    assert code == 1
    assert f"the reward '{reward}' compares with no goal" in error.replace("\n", " ")


def test_a_goal_of_a_learned_reward_that_wants_one(run, clip, tmp_path):
    bundle = write_learned_bundle(tmp_path / "learned", "time", form="goal")
    own, other = run("--model", bundle)[3], run("--model", bundle, "--goal", clip)[3]
    np.testing.assert_allclose(column(own, "value"), column(other, "value"), atol=1e-5)
    assert np.isfinite(column(own, "value")).all()


def test_a_video_with_too_few_frames_for_the_window_is_refused(run, tmp_path):
    code, error, _, _ = run("--model", write_learned_bundle(tmp_path / "learned", "viper", 60.0))
    assert code == 1
    assert "30 frames/s" in error and "wants 60" in error
    assert "Traceback" not in error
