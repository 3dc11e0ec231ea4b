"""The suite on synthetic clips: what is scored, with which goals, which frames are embedded, and bad input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from episode_data import FRAMES, square_episode, write_episodes, write_frames
from lerobot_data import LENGTHS, TOP, write_dataset
from tiny_bundle import write_tiny_bundle

from v2r_core.evaluate import perturb
from v2r_core.evaluate.episodes import EPISODES_FILE, EpisodeError, read_episodes
from v2r_core.evaluate.reward_plan import SuiteOptions, make_plan
from v2r_core.evaluate.reward_row import NO_DENSE, NO_QUALITY, NO_STAGES, NO_SUCCESS, NOT_FOR_STEPS, Row
from v2r_core.evaluate.reward_rows_changes import make_rows
from v2r_core.evaluate.reward_suite import ModelRun, run_model
from v2r_core.evaluate.scored_models import (
    BundleModel,
    NoveltyControl,
    TimeControl,
    novelty_control,
    pixel_control,
    plain_curve,
    random_control,
)
from v2r_core.rewards.goal import goal_from_demonstration
from v2r_core.video.source import open_video
from v2r_core.video.video import VideoError

OPTIONS = SuiteOptions(perturbed=4, min_interval=3)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    write_episodes(root / "train", (0, 1), ("expert",))
    write_episodes(root / "heldout", (7, 8))
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def judged(model, data: Path, goals: Path | None, options: SuiteOptions = OPTIONS) -> tuple[ModelRun, dict[str, Row]]:
    plan = make_plan(read_episodes(data), read_episodes(goals) if goals else None, options)
    run = run_model(model, plan, options)
    return run, {row.key: row for row in make_rows(run, plan, options)}


class CountingModel:
    """Pixels, and a count of the frames that were embedded."""

    def __init__(self) -> None:
        self.inner, self.embedded = pixel_control(), Counter()

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def embed(self, frames):
        self.embedded["frames"] += len(frames)
        return self.inner.embed(frames)


class NoisySteps(NoveltyControl):
    """A step reward that draws: brightness of the frame and noise of the seed."""

    stochastic = True

    def __init__(self) -> None:
        super().__init__(lambda batch: batch.reshape(len(batch), -1).mean(axis=1, keepdims=True).astype(np.float32), "")

    def score(self, rows, goal, seed=0):
        noise = np.random.default_rng([seed, len(rows)]).normal(size=len(rows))
        return plain_curve(rows[:, 0].astype(float) + noise, "step_reward")


def test_a_value_of_frames_on_squares_that_walk(splits: Path, bundle: Path) -> None:
    run, rows = judged(BundleModel(bundle), splits / "heldout", splits / "train")
    assert not run.own_end
    assert rows["voc_success"].estimate.value > 0.95
    assert rows["voc_reversed"].estimate.value == pytest.approx(-rows["voc_expert"].estimate.value)
    assert abs(rows["voc_shuffled"].estimate.value) < 0.6
    assert rows["voc_rewound"].estimate.value > 0.9
    assert rows["rewind_detected"].estimate.value == 1
    # One that never moves has no order in time: counted, not dropped.
    assert rows["voc_still"].estimate.count == 0 and rows["voc_still"].estimate.undefined == 4
    for key in ("auroc", "average_precision", "pair_accuracy", "kendall_tau", "auroc_expert_half", "goal_confusion"):
        assert rows[key].estimate.value == 1, key
    assert rows["auroc"].groups == {"right": 1, "down": 1}
    assert rows["bumps"].estimate.value < 0.1
    assert rows["dense_spearman"].estimate.value > 0.9
    assert rows["progress_error"].estimate.value < 0.1
    assert rows["agreement_blur"].estimate.value > 0.9
    assert rows["still_gain"].estimate.value == 0
    assert rows["covered_refused"].estimate.value == 1
    assert rows["seed_spread"].why_not
    assert rows["peak_mb"].estimate.value > 20 and rows["p50_ms"].estimate.value > 0


def test_values_are_the_scorers(splits: Path, bundle: Path) -> None:
    model = BundleModel(bundle)
    plan = make_plan(read_episodes(splits / "heldout"), read_episodes(splits / "train"), OPTIONS)
    run = run_model(model, plan, OPTIONS)
    scorer = model._scorers[0]
    episode = plan.episodes[3]
    with plan.goals.first[episode.labels.task].open() as video:
        scorer.set_goal(goal_from_demonstration(scorer.embed(video), "expert"))
    with episode.open() as video:
        expected = scorer.score(video).curve.value
    found = run.curves[3].value
    known = np.isfinite(expected)
    assert known.any()
    np.testing.assert_allclose(found[known], expected[known], atol=1e-6)


def test_each_frame_of_a_video_is_embedded_once(splits: Path) -> None:
    model = CountingModel()
    judged(model, splits / "heldout", splits / "train", SuiteOptions(perturbed=0))
    # Twelve episodes, two goals and their two stand-ins, and the episode that the clock runs on.
    assert model.embedded["frames"] == (12 + 4 + 1) * FRAMES
    judged(changed := CountingModel(), splits / "heldout", splits / "train", SuiteOptions(perturbed=4))
    extra = 4 * ((len(perturb.PICTURES) + 1) * FRAMES + 1)
    assert changed.embedded["frames"] == model.embedded["frames"] + extra


def test_step_rewards_get_no_number_for_what_needs_a_value(splits: Path) -> None:
    run, rows = judged(NoisySteps(), splits / "heldout", splits / "train")
    for key in ("voc_success", "voc_expert", "voc_reversed", "bumps", "rewind_detected", "progress_error", "voc_blur"):
        assert rows[key].why_not == NOT_FOR_STEPS
        assert np.isnan(rows[key].estimate.value)
    assert np.isfinite(rows["auroc"].estimate.value)
    assert np.isfinite(rows["preferred_to_reversed"].estimate.value)
    assert rows["goal_confusion"].why_not
    assert all(len(curves) == OPTIONS.seeds for curves in run.seeds.values())
    assert rows["seed_spread"].estimate.value > 0


def test_time_shows_what_a_metric_gives_away(splits: Path) -> None:
    _, rows = judged(TimeControl(), splits / "heldout", splits / "train")
    assert (
        rows["voc_success"].estimate.value
        == 1
        == rows["voc_still"].estimate.value
        == rows["voc_reversed"].estimate.value
    )
    assert rows["rewind_detected"].estimate.value == 0
    assert rows["auroc"].estimate.value == 0.5
    assert rows["still_beats"].estimate.value == 0.5


def test_all_models_have_the_same_rows(splits: Path) -> None:
    keys = [list(judged(model, splits / "heldout", splits / "train")[1]) for model in (random_control(), NoisySteps())]
    assert keys[0] == keys[1]


def test_the_subset_is_bounded_seeded_and_of_both_kinds(splits: Path) -> None:
    data, goals = read_episodes(splits / "heldout"), read_episodes(splits / "train")
    plan = make_plan(data, goals, OPTIONS)
    assert make_plan(data, goals, OPTIONS) == plan
    chosen = [plan.episodes[index].labels for index in plan.subset]
    assert Counter(each.success for each in chosen) == {True: 2, False: 2}
    assert {each.task for each in chosen if each.success} == {"right", "down"}
    few = make_plan(data, goals, SuiteOptions(per_group=1))
    assert Counter((each.labels.task, each.labels.behaviour) for each in few.episodes).most_common(1)[0][1] == 1
    assert len(few.episodes) == 6


def test_without_a_folder_of_goals_an_expert_of_the_data_is_taken_and_not_judged(splits: Path) -> None:
    plan = make_plan(read_episodes(splits / "heldout"), None, OPTIONS)
    assert {task: each.labels.seed for task, each in plan.goals.first.items()} == {"right": 7, "down": 7}
    assert len(plan.episodes) == 10
    assert not {each.path for each in plan.goals.first.values()} & {each.path for each in plan.episodes}


def test_episodes_of_a_dataset_have_names_of_their_own(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick")
    names = [episode.labels.file for episode in read_episodes(folder).episodes]
    assert names == [f"pick#{number}/{TOP}" for number in range(len(LENGTHS))]


def test_an_unlabelled_folder(tmp_path: Path) -> None:
    for name in ("expert", "half"):
        write_frames(tmp_path / f"{name}.mp4", square_episode("right", name, 0))
    run, rows = judged(pixel_control(), tmp_path, None)
    assert run.own_end == {0, 1}
    assert rows["voc_success"].estimate.count == 2
    assert "not labelled" in rows["voc_success"].title
    reasons = {"auroc": NO_SUCCESS, "pair_accuracy": NO_QUALITY, "dense_r2": NO_DENSE, "boundary_f1": NO_STAGES}
    assert {key: rows[key].why_not for key in reasons} == reasons


def test_one_frame_and_constant_videos_and_other_sizes(tmp_path: Path) -> None:
    still = [np.full((40, 56, 3), 90, np.uint8)] * 6
    write_frames(tmp_path / "one.mp4", still[:1])
    write_frames(tmp_path / "still.mp4", still)
    write_frames(tmp_path / "moving.mp4", square_episode("right", "expert", 0))
    labels = [
        {"file": "one.mp4", "task": "t", "success": True, "quality": 1},
        {"file": "still.mp4", "task": "t", "success": False, "quality": 0},
        {"file": "moving.mp4", "task": "t", "success": True, "quality": 1},
    ]
    (tmp_path / EPISODES_FILE).write_text(json.dumps({"episodes": labels}))
    goals = tmp_path / "goals"
    # The goal is seen by a larger camera.
    big = [np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1) for frame in square_episode("right", "expert", 1)]
    write_frames(goals / "goal.mp4", big)
    (goals / EPISODES_FILE).write_text(json.dumps({"episodes": [{"file": "goal.mp4", "task": "t", "success": True}]}))
    _, rows = judged(pixel_control(), tmp_path, goals)
    voc = rows["voc_success"].estimate
    assert (voc.count, voc.undefined) == (1, 1) and voc.value > 0.9
    assert np.isfinite(rows["auroc"].estimate.value)


def test_episodes_too_short_for_the_window_are_counted(splits: Path) -> None:
    class Windowed(NoisySteps):
        def score(self, rows, goal, seed=0):
            return plain_curve(np.full(len(rows), np.nan), "step_reward")

    _, rows = judged(Windowed(), splits / "heldout", splits / "train")
    assert (rows["auroc"].estimate.count, rows["auroc"].estimate.undefined) == (0, 12)
    assert rows["no_reward_all"].estimate.value == 1


def test_rnd_finds_the_experts_frames_old(splits: Path) -> None:
    with open_video(splits / "train" / "expert" / "right" / "0.mp4") as video:
        frames = list(video)
    control = novelty_control(frames, steps=40)
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    assert control.embed(frames).max() < control.embed(list(noise)).min()
    assert np.array_equal(control.embed(frames), novelty_control(frames, steps=40).embed(frames))
    with pytest.raises(ValueError, match="no frames"):
        novelty_control([])


def test_bad_folders(tmp_path: Path, splits: Path) -> None:
    with pytest.raises(EpisodeError, match="no such folder"):
        read_episodes(tmp_path / "nowhere")
    with pytest.raises(EpisodeError, match="no videos"):
        read_episodes(tmp_path)
    file = tmp_path / EPISODES_FILE
    for content, message in (
        ("{", "Invalid JSON"),
        ('{"episodes": []}', "no episodes"),
        ('{"episodes": [{"file": "x.mp4"}]}', "not there"),
        ('{"episodes": [{"file": "../x.mp4"}]}', "leaves the folder"),
        ('{"episodes": [{"file": "x.mp4", "kwality": 1}]}', "kwality"),
        ('{"episodes": [{"file": "x.mp4", "stages": [3, 2]}]}', "ascending"),
        ('{"episodes": [{"file": "x.mp4"}, {"file": "x.mp4"}]}', "twice"),
    ):
        file.write_text(content)
        with pytest.raises(EpisodeError, match=message):
            read_episodes(tmp_path)
    write_frames(tmp_path / "x.mp4", square_episode("right", "expert", 0))
    for labels in ({"frames": 9}, {"dense_reward": [1.0]}, {"stages": [99]}):
        file.write_text(json.dumps({"episodes": [{"file": "x.mp4", **labels}]}))
        with pytest.raises(VideoError, match="do not fit"):
            read_episodes(tmp_path).episodes[0].open()
    with pytest.raises(ValueError, match="used as a goal"):
        make_plan(read_episodes(splits / "train"), read_episodes(splits / "train"), OPTIONS)
    with pytest.raises(ValueError, match="seeds is 1"):
        SuiteOptions(seeds=1)


def test_changed_pictures_are_as_named() -> None:
    frame = square_episode("right", "expert", 0)[5]
    changed = {name: change(frame) for name, change in perturb.PICTURES.items()}
    assert all(each.shape == frame.shape and each.dtype == np.uint8 for each in changed.values())
    assert changed["brighter"].mean() > frame.mean() > changed["darker"].mean()
    shifted = changed["camera shift"]
    assert np.array_equal(shifted[3:, 4:], frame[:-3, :-4]) and not np.array_equal(shifted, frame)
    assert (
        np.abs(np.diff(changed["blur"].astype(int), axis=1)).max() <= np.abs(np.diff(frame.astype(int), axis=1)).max()
    )
    covered = (changed["occlusion"] != frame).any(axis=2)
    assert 100 < covered.sum() <= 12**2 and (changed["occlusion"][covered] == 127).all()
    assert np.mean(perturb.covered_camera(2, 48, 64, 0)) < 10
    assert sorted(perturb.shuffled_order(9, 1)) == list(range(9))
    assert perturb.half_rate(5).tolist() == [0, 2, 4] and perturb.double_rate(2).tolist() == [0, 0, 1, 1]
    assert perturb.rewound_order(1).tolist() == [0]
