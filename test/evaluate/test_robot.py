"""The robot probe against closed-form ridge, and its data: side-cars, class folders, what is missing or constant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from expert_data import write_experts
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score

from v2r_core.encoders.zoo import create_encoder
from v2r_core.evaluate.features import (
    ProbeDataError,
    class_numbers,
    embed_recordings,
    encoder_embedder,
    list_recordings,
    pixel_embedder,
    random_views,
    read_truth,
)
from v2r_core.evaluate.robot import ALPHAS, Positions, fit_ridge, probe_embedder, r2_scores, ridge_path, robot_probe


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 12),
    columns=st.integers(1, 12),
    alpha=st.floats(0.1, 1e4),
)
def test_ridge_is_the_closed_form_for_either_gram_matrix(seed, rows, columns, alpha):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, columns)), rng.normal(size=(rows, 2))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    (found,) = ridge_path(x, y, (alpha,))
    np.testing.assert_allclose(found, np.linalg.solve(x.T @ x + alpha * np.eye(columns), x.T @ y), atol=1e-8)
    np.testing.assert_allclose(found, SklearnRidge(alpha=alpha, fit_intercept=False).fit(x, y).coef_.T, atol=1e-8)


def test_fit_ridge_is_scikit_learns_on_standardised_data():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(3, 2, size=(60, 5)).astype(np.float32), np.repeat(np.arange(6), 10)
    y = x[:, :2] @ rng.normal(size=(2, 3)) + 0.5 * rng.normal(size=(60, 3)) + 7
    ridge = fit_ridge(x, y, groups)
    assert ridge.alpha in ALPHAS
    scaled = (x - x.mean(axis=0, dtype=np.float64)) / x.astype(np.float64).std(axis=0)
    oracle = SklearnRidge(alpha=ridge.alpha).fit(scaled, y)
    np.testing.assert_allclose(ridge.predict(x), oracle.predict(scaled), atol=1e-8)


def test_noise_gets_more_regularisation_than_signal():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(80, 40)).astype(np.float32), np.repeat(np.arange(8), 10)
    signal = x[:, :1].astype(np.float64)
    assert fit_ridge(x, signal, groups).alpha < fit_ridge(x, rng.normal(size=(80, 1)), groups).alpha


def test_a_feature_that_was_silent_in_training_does_no_harm():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(60, 4)).astype(np.float32), np.repeat(np.arange(6), 10)
    x[:, 3] = 1e-6 * rng.normal(size=60)
    ridge = fit_ridge(x, x[:, :1].astype(np.float64), groups)
    loud = x.copy()
    loud[:, 3] = 0.1
    np.testing.assert_allclose(ridge.predict(loud), ridge.predict(x), atol=0.05)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_r2_is_scikit_learns_and_nan_for_what_does_not_move(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.normal(size=(2, 20, 3))
    truth[:, 1] = 0.09 + 1e-5 * rng.normal(size=20)
    found = r2_scores(truth, predicted)
    assert np.isnan(found[1])
    for column in (0, 2):
        assert found[column] == pytest.approx(r2_score(truth[:, column], predicted[:, column]))


def positions(seed: int, videos: int = 6, tasks: tuple[str, ...] = ("push", "reach")) -> Positions:
    """The features are the positions, turned; the object of `reach` does not move in z."""
    rng = np.random.default_rng(seed)
    gripper, thing = rng.normal(size=(2, videos * 10, 3))
    task = np.repeat([tasks[video % len(tasks)] for video in range(videos)], 10)
    thing[task == "reach", 2] = 0.02
    turn = np.random.default_rng(5).normal(size=(6, 8))
    features = (np.concatenate([gripper, thing], axis=1) @ turn).astype(np.float32)
    return Positions(features, gripper, thing, task, np.repeat(np.arange(videos), 10))


def test_positions_that_are_in_the_features_are_found():
    report = robot_probe(positions(0), positions(1))
    assert report.gripper_mean > 0.99
    assert report.object_mean > 0.95
    assert report.mean == pytest.approx((report.gripper_mean + report.object_mean) / 2)
    assert report.undefined == 1
    assert np.isnan(report.objects["reach"].r2[2])
    assert np.isfinite(report.objects["push"].r2).all()


def test_a_task_that_training_lacks_is_named():
    with pytest.raises(ProbeDataError, match="reach"):
        robot_probe(positions(0, tasks=("push",)), positions(1))


def test_one_video_is_too_few():
    with pytest.raises(ProbeDataError, match="1 video"):
        robot_probe(positions(0, videos=1), positions(1, videos=1))


def test_pixels_see_a_moving_square(tmp_path: Path):
    report = probe_embedder(pixel_embedder(), write_experts(tmp_path), frames=6)
    assert report.gripper.r2[0] > 0.8
    assert report.train_frames == 4 * 6
    assert report.heldout_frames == 2 * 6


def test_features_do_not_depend_on_other_frames(tmp_path: Path):
    recordings = list_recordings(write_experts(tmp_path), "train")
    every = embed_recordings(pixel_embedder(), recordings, frames=99)
    some = embed_recordings(pixel_embedder(), recordings, frames=3)
    for video, frame, row in zip(some.video, some.frame, some.features, strict=True):
        np.testing.assert_array_equal(row, every.features[(every.video == video) & (every.frame == frame)][0])
    assert some.frame[some.video == 0].tolist()[0] == 0
    assert some.frame[some.video == 0].tolist()[-1] == every.frame[every.video == 0].max()


def test_random_views_are_seeded_crops():
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    first, second, other = (random_views([frame] * 3, 16, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == (16, 16, 3)


def test_views_come_first(tmp_path: Path):
    recordings = list_recordings(write_experts(tmp_path), "heldout")
    assert embed_recordings(pixel_embedder(), recordings, frames=3, views=2).features.shape == (2, 6, 768)


@pytest.mark.parametrize(("blocks", "width"), [(1, 192), (4, 768)])
def test_class_tokens_of_the_last_blocks(blocks, width):
    encoder = create_encoder("random:timm:vit_tiny_patch16_224", size=224)
    frames = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    features = encoder_embedder(encoder, blocks).embed(frames)
    assert features.shape == (1, width)
    np.testing.assert_allclose(features[:, -192:], encoder_embedder(encoder).embed(frames), atol=1e-5)


def test_a_network_without_class_token_has_no_blocks():
    with pytest.raises(ProbeDataError, match="no vision transformer"):
        encoder_embedder(create_encoder("random:timm:resnet18"), blocks=4)


def test_class_folders(tmp_path: Path):
    from PIL import Image

    for name in ("b", "a"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 20)).save(tmp_path / "train" / name / f"{number}.png")
    found = list_recordings(tmp_path, "train")
    assert [recording.label for recording in found] == ["a", "b"]
    assert len(embed_recordings(pixel_embedder(), found, frames=5).video) == 4
    classes, train, test = class_numbers(["a", "b"], ["b"])
    assert (classes, train.tolist(), test.tolist()) == (["a", "b"], [0, 1], [1])


def test_classes_that_training_lacks_are_named():
    with pytest.raises(ProbeDataError, match="held-out classes c"):
        class_numbers(["a", "b"], ["c"])
    with pytest.raises(ProbeDataError, match="neither"):
        class_numbers(["a", None], ["a"])


def test_missing_folders_and_side_cars(tmp_path: Path):
    with pytest.raises(ProbeDataError, match="no such folder"):
        list_recordings(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ProbeDataError, match="no videos"):
        list_recordings(tmp_path, "train")
    with pytest.raises(ProbeDataError, match="render_experts"):
        read_truth(tmp_path / "train" / "x.mp4")
    (tmp_path / "train" / "x.npz").write_text(json.dumps({}))
    with pytest.raises(ProbeDataError, match="not a side-car"):
        read_truth(tmp_path / "train" / "x.mp4")


def test_a_side_car_that_is_too_short(tmp_path: Path):
    data = write_experts(tmp_path)
    file = sorted((data / "train").glob("*.npz"))[0]
    with np.load(file) as arrays:
        np.savez(file, **{name: array[:2] if array.ndim else array for name, array in arrays.items()})
    with pytest.raises(ProbeDataError, match="2 rows beside it"):
        probe_embedder(pixel_embedder(), data, frames=6)
