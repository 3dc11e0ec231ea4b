"""Baselines: pixels and random filters."""

import numpy as np
import pytest

from v2r_core.rewards.baselines import RandomEncoder, block_mean, pixel_embedding


def frames(count=3, side=224, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_blocks_are_averaged():
    images = frames()
    expected = images.reshape(3, 16, 14, 16, 14, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(block_mean(images, 16), expected, atol=1e-6)
    np.testing.assert_allclose(pixel_embedding(images), expected.reshape(3, -1), atol=1e-6)


def test_blocks_of_unequal_size():
    white = np.full((1, 37, 37, 3), 255, np.uint8)
    np.testing.assert_array_equal(block_mean(white, 16), np.ones((1, 16, 16, 3), np.float32))


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8)]
)
def test_frames_that_do_not_fit(bad):
    with pytest.raises(ValueError, match="expected"):
        block_mean(bad, 16)


def test_random_encoder_is_fixed_by_its_seed():
    images = frames(9)
    first = RandomEncoder(3)(images)
    assert first.shape == (9, 288)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, RandomEncoder(3)(images))
    assert np.abs(first - RandomEncoder(4)(images)).max() > 0.01
    np.testing.assert_allclose(RandomEncoder(3)(images[4:5]), first[4:5], atol=1e-5)


def test_random_encoder_tells_images_apart():
    encoder = RandomEncoder()
    dark, bright = np.zeros((1, 96, 96, 3), np.uint8), np.full((1, 96, 96, 3), 255, np.uint8)
    assert np.linalg.norm(encoder(dark) - encoder(bright)) > 0.1
