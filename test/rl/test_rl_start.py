"""How a run of `v2r rl train` begins: what it says of its replay, which folder it takes, which placements it sees; and
how often it evaluates at its end."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.rl import loop
from v2r_core.rl.agent_replay import open_replay
from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.evaluation import EVALUATION_SEEDS, TEST_SEEDS, Evaluator, training_seed
from v2r_core.rl.loop import train
from v2r_core.rl.options import RlOptions, Task
from v2r_core.rl.replay import Layout, ReplayError, ReplayStore
from v2r_core.training.log import read_metrics

README = Path(__file__).parents[2] / "README.md"
RECIPE = dataclasses.replace(
    DrQv2Recipe.preset("tiny-pixels"),
    size=32, channels=4, hidden_dim=16, feature_dim=8, batch_size=8, seed_frames=40, exploration_steps=10,
    action_repeat=3,
)  # fmt: skip
TASK = Task("gym:toy_blob:Blob-v0", reward="dense", camera=32, horizon=30)


def options_of(**changes: Any) -> RlOptions:
    plain = {"steps": 30, "eval_every": 0, "eval_episodes": 1, "video": False, "threads": 1, "cpu": True}
    return RlOptions(**{**plain, **changes})


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations cost nothing, and each is worse than the one before."""
    scores = iter(range(0, -100, -1))

    class Judging(Evaluator):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def run(self, act: Any) -> Any:
            numbers = {"eval/success": 0.0, "eval/return": float(next(scores)), "eval/dense": 0.0}
            return SimpleNamespace(success=0.0, numbers=lambda: numbers)

        def close(self) -> None:
            pass

    monkeypatch.setattr(loop, "Evaluator", Judging)


def evaluations(run: Path) -> list[float | None]:
    return [line["step"] for line in read_metrics(run) if "eval/return" in line]


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize(
    ("steps", "every", "at"),
    [(62, 0, [63]), (62, 30, [30, 60, 63]), (62, 31, [33, 63]), (60, 30, [30, 60]), (62, 100, [63])],
)
def test_the_end_is_evaluated_once(steps: int, every: int, at: list[int], tmp_path: Path) -> None:
    # Three steps an action: 62 is never hit.
    options = options_of(steps=steps, eval_every=every)
    train(RECIPE, TASK, dataclasses.replace(options, stop_after=45), tmp_path / "run")
    assert evaluations(tmp_path / "run") == [step for step in at if step <= 45]
    for _ in range(2):  # the second time nothing is left to do
        train(RECIPE, TASK, dataclasses.replace(options, resume=True), tmp_path / "run")
        assert evaluations(tmp_path / "run") == at


def layout_of(recipe: DrQv2Recipe) -> Layout:
    return Layout((3, recipe.size, recipe.size), "uint8", 1)


def paper_command() -> float:
    """Gigabytes in the README's command for the paper's preset."""
    (found,) = re.findall(r"v2r rl train --preset paper .*?--replay-gb (\S+)", README.read_text(), flags=re.DOTALL)
    return float(found)


def test_a_replay_below_the_recipes_is_said(tmp_path: Path) -> None:
    paper = DrQv2Recipe.preset("paper")
    store, note = open_replay(tmp_path / "small", layout_of(paper), paper, RlOptions())
    store.close()
    assert store.capacity_rows == 188_857
    assert "holds 188,857 frames" in note and "--replay-gb 4 " in note and "1,000,000" in note
    enough = float(re.findall(r"--replay-gb (\S+)$", note)[0])
    for gigabytes in (enough, paper_command()):
        store, note = open_replay(tmp_path / f"{gigabytes}", layout_of(paper), paper, RlOptions(replay_gb=gigabytes))
        store.close()
        assert (store.capacity_rows, note) == (1_000_000, "")
    # One that is there keeps its size, and says so.
    store, note = open_replay(tmp_path / "small", layout_of(paper), paper, RlOptions(replay_gb=22))
    store.close()
    assert store.capacity_rows == 188_857
    assert "keeps the 188,857 frames" in note and "--replay-gb 22 is for new runs" in note


def test_a_run_says_how_large_its_replay_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(replay_gb=1e-3)
    train(RECIPE, TASK, options, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "the replay holds 323 frames, for --replay-gb 0.001 allows no more; the recipe's 200,000 need" in said
    train(RECIPE, TASK, dataclasses.replace(options, resume=True, replay_gb=2.0), tmp_path / "run")
    assert "keeps the 323 frames that it was made for: --replay-gb 2" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_begin_leaves_the_folder_free(tmp_path: Path) -> None:
    run, wrong = tmp_path / "run", tmp_path / "recorded"
    with ReplayStore(wrong, Layout((3, 32, 32), "uint8", 5), 1 << 20):
        pass
    refused = [
        (dataclasses.replace(TASK, env="gym:toy_blob:Bolb-v0"), options_of(), "Bolb"),
        (dataclasses.replace(TASK, observation="eyse"), options_of(), "eyse"),
        (TASK, options_of(offline=wrong), "has actions of 5, the agent's have 2"),
    ]
    for task, options, message in refused:
        with pytest.raises((ValueError, RuntimeError, OSError), match=message):
            train(RECIPE, task, options, run)
        assert not run.exists()
    train(RECIPE, TASK, options_of(), run)
    with pytest.raises(ValueError, match="there is a run already"):
        train(RECIPE, TASK, options_of(), run)


def test_two_that_begin_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        ReplayStore(run / "replay", Layout((3, 32, 32), "uint8", 2), 1 << 20),
        pytest.raises(ReplayError, match="another process writes here"),
    ):
        train(RECIPE, TASK, options_of(), run)
    assert not (run / "run.json").exists()


def test_small_seeds_have_the_placements_that_they_always_had() -> None:
    for seed in (0, 7, 498):
        assert [training_seed(seed, episode) for episode in (0, 1, 999_999)] == [
            (seed + 1) * 1_000_000 + episode for episode in (0, 1, 999_999)
        ]


@pytest.mark.parametrize("seed", [499, 599, 4_294, 214_748, 20_240_101, 2**32 - 1])
def test_large_seeds_have_placements_of_their_own(seed: int) -> None:
    found = np.array([training_seed(seed, episode) for episode in range(20_000)])
    assert found.min() >= TEST_SEEDS + 100_000_000 > EVALUATION_SEEDS
    assert found.max() < 2**32  # NumPy's older generators, in dm_control and MetaWorld, take no more
    assert len(set(found.tolist())) == len(found)
    # MetaWorld draws fifty placements at once.
    assert len(set((found // 50).tolist())) == len(found) // 50
    other = [training_seed(seed - 1 if seed > 499 else 500, episode) for episode in range(20_000)]
    assert not set(found.tolist()) & set(other)


def test_no_training_comes_to_the_placements_of_an_evaluation() -> None:
    for seed, episode in ((498, 1_000_000), (0, 499_000_000), (498, 101_000_000)):
        assert training_seed(seed, episode) >= 700_000_000
    assert max(training_seed(498, episode) for episode in (0, 999_999)) < EVALUATION_SEEDS


def test_a_run_takes_its_placements_from_there(tmp_path: Path) -> None:
    train(RECIPE, TASK, options_of(steps=60, seed=20_240_101), tmp_path / "run")
    with ReplayStore(tmp_path / "run" / "replay", read_only=True) as store:
        seeds = [episode.notes["seed"] for episode in store.episodes]
    assert seeds == [training_seed(20_240_101, episode) for episode in range(2)]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_do_not_exist(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed}, a number from 0 to 4294967295 expected"):
        RlOptions(seed=seed)


@pytest.mark.slow
def test_the_readmes_example_of_stable_baselines_runs(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    pytest.importorskip("metaworld", reason="MetaWorld is not installed")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "SAC" in block]
    assert "learn(20_000)" in code
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "vip_reward")
    (tmp_path / "experts" / "door-close").mkdir(parents=True)
    shutil.copy(CLIPS / "success.mp4", tmp_path / "experts" / "door-close" / "0.mp4")
    # As much memory as a small machine has, so that a large buffer is refused on every machine.
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))\n"
    done = subprocess.run(
        [sys.executable, "-c", limited + code.replace("learn(20_000)", "learn(4)")],
        cwd=tmp_path,
        env={"MUJOCO_GL": "egl", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
