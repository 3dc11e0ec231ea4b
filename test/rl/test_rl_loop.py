from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bundle import SIZE, write_tiny_bundle
from tiny_policy import MARK, blob

from v2r_core.deploy.policy import Policy, check_frames
from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.rl import loop
from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.envs import EnvironmentFailure
from v2r_core.rl.evaluation import TEST_SEEDS, Evaluator
from v2r_core.rl.export import export_policy
from v2r_core.rl.loop import RlError, train
from v2r_core.rl.observation import EmbeddingObserver, PixelObserver
from v2r_core.rl.options import RlOptions, Task
from v2r_core.rl.replay import ReplayStore
from v2r_core.rl.replay_files import Layout
from v2r_core.rl.rollouts import Rollouts
from v2r_core.rl.runs import checkpoint_of, evaluate_run, load_agent, recorded
from v2r_core.training.checkpoint import latest_checkpoint, step_of
from v2r_core.training.log import read_metrics

BLOB = "gym:toy_blob:Blob-v0"
SMALL = dataclasses.replace(
    DrQv2Recipe.preset("tiny"),
    feature_dim=32,
    hidden_dim=32,
    batch_size=32,
    seed_frames=60,
    exploration_steps=60,
    noise=(1.0, 0.2, 400),
)
TIMED = {"steps_per_s"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("eyes") / "bundle")


def task_of(bundle: Path, **changes: Any) -> Task:
    return Task(**{"env": BLOB, "reward": "dense", "camera": 48, "horizon": 60, "observation": str(bundle), **changes})


def test_bundles_are_recorded_with_their_whole_path(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    (bundle.parent / "sparse").mkdir()
    loop.train(SMALL, task_of(Path(bundle.name), reward="sparse"), options_of(steps=60), bundle.parent / "whole")
    task = recorded(bundle.parent / "whole")[1]
    assert (task.observation, task.reward, task.goal) == (str(bundle), "sparse", "")


def options_of(**changes: Any) -> RlOptions:
    plain = {"steps": 300, "eval_every": 0, "eval_episodes": 2, "video": False, "threads": 1, "save_every": 10_000}
    return RlOptions(**{**plain, **changes})


def numbers_of(run: Path) -> list[dict[str, float | None]]:
    return [{key: value for key, value in line.items() if key not in TIMED} for line in read_metrics(run)]


def test_a_run_that_was_interrupted_gives_the_numbers_of_one_that_was_not(bundle: Path, tmp_path: Path) -> None:
    task = task_of(bundle, novelty=0.25)
    whole = train(SMALL, task, options_of(envs=2), tmp_path / "whole")
    # 170 steps: in the middle of both episodes, of which one environment step a half was seen by the updates.
    halved = train(SMALL, task, options_of(envs=2, stop_after=170), tmp_path / "halved")
    assert not any("eval/success" in line for line in numbers_of(halved))
    with ReplayStore(halved / "replay") as store:  # what a run leaves that is killed after its last checkpoint
        committed = store.number
        store.begin(np.zeros(48, np.float32))
        store.append(np.zeros(2, np.float32), 9.0, 1.0, np.ones(48, np.float32))
        store.end()
    train(SMALL, task, options_of(envs=2, resume=True), halved)
    assert numbers_of(halved) == numbers_of(whole)
    assert len(numbers_of(whole)) >= 5
    first, second = (load_agent(run)[0].state_dict()["networks"] for run in (whole, halved))
    assert all(torch.equal(first[key], second[key]) for key in first)
    with ReplayStore(halved / "replay", read_only=True) as store:
        assert 0 < committed < store.number
        assert max(float(store.read(episode)[1]["reward"].max()) for episode in store.episodes) < 9


def test_it_learns_from_what_the_simulator_pays(bundle: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        SMALL, action_repeat=1, lr=1e-3, gamma=0.9, hidden_dim=64, feature_dim=64, batch_size=64, noise=(1.0, 0.2, 1000)
    )
    beginner = train(recipe, task_of(bundle), options_of(steps=60), tmp_path / "beginner")
    assert evaluate_run(beginner, 6)[0].success < 0.5
    options = options_of(steps=3000, eval_every=600, eval_episodes=6, stop_at=1.0, video=True)
    run = train(recipe, task_of(bundle), options, tmp_path / "run")
    assert [line["eval/success"] for line in numbers_of(run) if "eval/success" in line][-1] == 1.0
    evaluation, seconds = evaluate_run(run, 3)
    assert evaluation.success == 1.0
    assert seconds == pytest.approx(1 / 20)
    assert sorted(path.suffix for path in (run / "videos").iterdir())[0] == ".mp4"

    policy = Policy(export_policy(run, tmp_path / "policy", name="blob"), providers=("cpu",))
    assert policy.rate == pytest.approx(20)
    agent, _ = load_agent(run)
    observe = EmbeddingObserver(bundle)
    frames = check_frames(3, 48, 5)
    rows = [observe(frame) for frame in frames]
    for count in range(1, len(frames) + 1):
        seen = rows[max(0, count - 3) : count]
        stack = np.stack([seen[0]] * (3 - len(seen)) + seen)
        np.testing.assert_allclose(policy.act(frames[count - 1]), agent.act(stack, 0, evaluate=True), atol=1e-5)


def judge_as(monkeypatch: pytest.MonkeyPatch, *scores: tuple[float, float]) -> None:
    """Evaluations come to these successes and returns, one after the other."""
    coming = iter(scores)

    class Judging(Evaluator):
        def run(self, act: Any) -> Any:
            success, pay = next(coming)
            return SimpleNamespace(
                success=success, numbers=lambda: {"eval/success": success, "eval/return": pay, "eval/dense": 0.0}
            )

    monkeypatch.setattr(loop, "Evaluator", Judging)


def test_the_agent_of_the_best_evaluation_is_kept(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, (0.5, 1.0), (0.75, 2.0), (0.75, 3.0), (0.75, 2.5), (0.25, 9.0))
    options = options_of(steps=300, eval_every=60)
    run = train(SMALL, task_of(bundle), dataclasses.replace(options, stop_after=240), tmp_path / "run")
    # Of equals the one that was paid more; a run that goes on knows the best of before.
    assert step_of(checkpoint_of(run, "best")) == 180
    train(SMALL, task_of(bundle), dataclasses.replace(options, resume=True), run)
    assert step_of(checkpoint_of(run, "best")) == 180
    assert step_of(checkpoint_of(run, "newest")) == 300
    best, newest = (load_agent(run, which)[0].state_dict()["networks"] for which in ("best", "newest"))
    assert any(not torch.equal(best[key], newest[key]) for key in best)
    for which, steps, success in (("best", 180, 0.75), ("newest", 300, 0.25)):
        card = export_policy(run, tmp_path / which, which=which, name="blob").manifest
        assert f"{steps} environment steps" in card.training["recipe"]
        assert card.quality["success"] == success
    with pytest.raises(ValueError, match="checkpoint is 'last', one of best, newest"):
        load_agent(run, "last")  # type: ignore[arg-type]


def test_a_killed_run_forgets_the_best_of_what_it_has_to_do_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, (0.25, 1.0), (0.5, 1.0), (0.4, 1.0))
    options = options_of(steps=180, eval_every=60)
    run = train(SMALL, task_of(bundle), dataclasses.replace(options, stop_after=120), tmp_path / "run")
    best = checkpoint_of(run, "best")
    later = best.with_name("step-00000180")
    shutil.copytree(best, later)  # written just before it was killed: the other checkpoint knows nothing of it
    train(SMALL, task_of(bundle), dataclasses.replace(options, resume=True), run)
    assert step_of(checkpoint_of(run, "best")) == 120
    assert not later.exists()


def test_a_run_of_an_older_version_goes_on(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_as(monkeypatch, (0.5, 1.0), (0.25, 1.0))
    options = options_of(steps=120, eval_every=60)
    run = train(SMALL, task_of(bundle), dataclasses.replace(options, stop_after=60), tmp_path / "run")
    shutil.rmtree(run / "best")  # it kept none, and no score
    state = latest_checkpoint(run) / "state.json"
    content = json.loads(state.read_text())
    content["pairs"] = [pair for pair in content["pairs"] if pair[0] not in {"best", "judged_at"}]
    state.write_text(json.dumps(content))
    assert step_of(checkpoint_of(run, "best")) == 60
    train(SMALL, task_of(bundle), dataclasses.replace(options, resume=True), run)
    assert step_of(checkpoint_of(run, "best")) == 120
    assert load_agent(run)[0].action_dim == 2


def test_a_best_agent_that_found_no_space_is_not_the_best(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_as(monkeypatch, (0.25, 1.0), (0.75, 1.0), (0.5, 1.0))
    save = loop.save_state

    def full(run: Path, step: int, *rest: Any) -> Path:
        if step == 120:
            raise OSError(28, "No space left on device")
        return save(run, step, *rest)

    monkeypatch.setattr(loop, "save_state", full)
    run = train(SMALL, task_of(bundle), options_of(steps=180, eval_every=60), tmp_path / "run")
    assert "step 120: [Errno 28]" in capsys.readouterr().err
    assert step_of(checkpoint_of(run, "best")) == 180


def test_an_environment_that_raises_loses_its_episode_only(bundle: Path, tmp_path: Path) -> None:
    # The blob raises in its first episode; each new environment has a first episode.
    task = task_of(bundle, env="gym:toy_blob:HotBlob-v0")
    with pytest.raises(RlError, match=r"3 times in a row.*--resume"):
        train(SMALL, task, options_of(), tmp_path / "run")
    assert latest_checkpoint(tmp_path / "run")


def test_recordings_of_a_robot_are_learned_from_first(bundle: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recorded"
    rng = np.random.default_rng(0)
    with ReplayStore(recordings, Layout((3, SIZE, SIZE), "uint8", 2), 1 << 22) as store:
        for steps in (8, 8, 8, 1):  # the last one is too short to be drawn
            store.begin(rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
            for _ in range(steps):
                action = rng.uniform(-1, 1, 2).astype(np.float32)
                store.append(action, 1.0, 1.0, rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
            store.end(success=1)
        frame = store.read(store.episodes[1])[0][4]
    options = options_of(steps=60, offline=recordings, offline_updates=5)
    run = train(SMALL, task_of(bundle), options, tmp_path / "run")
    with ReplayStore(run / "replay", read_only=True) as store:
        rows, steps = store.read(store.episodes[1])
        assert [episode.rows for episode in store.episodes[:3]] == [9, 9, 9]
        np.testing.assert_array_equal(rows[4], EmbeddingObserver(bundle)(frame.transpose(1, 2, 0)))
        assert steps["reward"][1:].tolist() == [1.0] * 8
    assert numbers_of(run)[0]["updates"] >= 5

    wrong = tmp_path / "wrong"
    with ReplayStore(wrong, Layout((3, SIZE, SIZE), "uint8", 3), 1 << 20):
        pass
    with pytest.raises(ValueError, match="has actions of 3, the agent's have 2"):
        train(SMALL, task_of(bundle), options_of(offline=wrong), tmp_path / "other")


def test_what_an_agent_is_paid(bundle: Path, tmp_path: Path) -> None:
    paid = {}
    for reward in ("sparse", "dense", "none"):
        run = train(SMALL, task_of(bundle, reward=reward), options_of(steps=60), tmp_path / reward)
        paid[reward] = numbers_of(run)[0]
    assert paid["none"]["return"] == 0
    assert paid["dense"]["return"] == pytest.approx(paid["dense"]["dense"])
    assert paid["sparse"]["return"] == paid["sparse"]["sparse"]
    assert paid["none"]["dense"] == paid["dense"]["dense"]  # nothing was learned yet: the same episode


def test_refusals(bundle: Path, tmp_path: Path) -> None:
    run = train(SMALL, task_of(bundle), options_of(steps=60), tmp_path / "run")
    with pytest.raises(ValueError, match="there is a run already"):
        train(SMALL, task_of(bundle), options_of(), run)
    with pytest.raises(CheckpointError, match=r"task\.reward was dense, now it is sparse"):
        train(SMALL, task_of(bundle, reward="sparse"), options_of(resume=True), run)
    with pytest.raises(CheckpointError, match=r"gamma was 0\.97, now it is 0\.9"):
        train(dataclasses.replace(SMALL, gamma=0.9), task_of(bundle), options_of(resume=True), run)
    recipe, task, record = recorded(run)
    assert (recipe, task) == (SMALL, task_of(bundle))
    assert record["options"]["seed"] == 0
    (latest_checkpoint(run) / "state.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="resume from an older checkpoint"):
        load_agent(run, "newest")
    for wrong in ({"novelty": 1.5}, {"camera": 4}, {"horizon": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            task_of(bundle, **wrong)


def test_environments_that_fail_at_once_end_the_run_with_a_checkpoint(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Failing(Rollouts):
        def begin(self, seeds: Sequence[int | None]) -> None:
            made.extend(seed for seed in seeds if seed is not None)
            if len(made) > 1:  # the first environments start, break in their first episode, and are made again
                raise EnvironmentFailure("the motor is hot")
            super().begin(seeds)

    monkeypatch.setattr(loop, "Rollouts", Failing)
    with pytest.raises(RlError, match="the motor is hot; 3 times in a row"):
        train(SMALL, task_of(bundle, env="gym:toy_blob:HotBlob-v0"), options_of(), tmp_path / "run")
    assert len(made) == 3
    assert latest_checkpoint(tmp_path / "run")


def test_an_evaluation_that_fails_is_left_out(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Evaluator):
        def run(self, act: Any) -> Any:
            raise EnvironmentFailure("the lamp is out")

    monkeypatch.setattr(loop, "Evaluator", Failing)
    run = train(SMALL, task_of(bundle), options_of(steps=120, eval_every=60), tmp_path / "run")
    assert capsys.readouterr().err.count("not evaluated: the lamp is out") == 2
    assert not any("eval/success" in line for line in numbers_of(run))
    assert numbers_of(run)[-1]["step"] == 120


def test_evaluations_do_not_depend_on_who_shares_the_work(bundle: Path, tmp_path: Path) -> None:
    run = train(SMALL, task_of(bundle), options_of(steps=60), tmp_path / "run")
    one, _ = evaluate_run(run, 5, workers=1, keep_frames=True)
    three, _ = evaluate_run(run, 5, workers=3)
    assert [episode.seed for episode in three.episodes] == list(range(TEST_SEEDS, TEST_SEEDS + 5))
    assert three.numbers() == pytest.approx(one.numbers(), rel=0, abs=0, nan_ok=True)
    assert len({episode.dense for episode in three.episodes}) == 5
    assert [len(episode.frames) for episode in one.episodes] == [21, 0, 0, 0, 0]
    assert one.episodes[0].frames[0].shape == (48, 48, 3)


def test_novelty_is_mixed_as_diffusion_reward_does(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(blob(*MARK)).save(tmp_path / "goal.png")

    def first_line(name: str, **changes: Any) -> dict[str, float | None]:
        run = train(SMALL, task_of(bundle, **changes), options_of(steps=180), tmp_path / name)
        learned = [line for line in numbers_of(run) if "batch_reward" in line]
        return numbers_of(run)[0] | {"batch_reward": learned[0]["batch_reward"]}

    # Nothing is paid but novelty, 1 on average, over three steps that end in one observation.
    assert first_line("none", reward="none")["batch_reward"] == 0
    novel = first_line("novel", reward="none", novelty=0.5)["batch_reward"]
    assert novel is not None and 0.2 < novel < 0.8
    # What a bundle pays counts 1 - alpha; the first episode is the same, since nothing was learned before it.
    paid = {"reward": str(bundle), "goal": str(tmp_path / "goal.png")}
    whole, mixed = first_line("whole", **paid), first_line("mixed", **paid, novelty=0.75)
    assert whole["return"]
    assert mixed["return"] == pytest.approx(0.25 * whole["return"], rel=1e-5)


def test_pixels_come_to_the_robot_as_they_were_learned_from(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        DrQv2Recipe.preset("tiny-pixels"),
        size=32,
        channels=4,
        hidden_dim=16,
        batch_size=8,
        seed_frames=40,
        exploration_steps=10,
    )
    task = Task(BLOB, reward="dense", camera=48, horizon=40)
    run = train(recipe, task, options_of(steps=120), tmp_path / "run")
    assert any(line.get("updates") for line in numbers_of(run))
    policy = Policy(export_policy(run, tmp_path / "policy"), providers=("cpu",))
    assert policy.bundle.manifest.observation == "pixels"
    agent, _ = load_agent(run)
    observe = PixelObserver(32)
    frames = check_frames(1, 48, 4)
    rows = [observe(frame) for frame in frames]
    for count in range(1, len(frames) + 1):
        seen = rows[max(0, count - 3) : count]
        stack = np.stack([seen[0]] * (3 - len(seen)) + seen)
        np.testing.assert_allclose(policy.act(frames[count - 1]), agent.act(stack, 0, evaluate=True), atol=1e-5)
