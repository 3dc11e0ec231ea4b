"""Our pre-processing against the official one of VIP, pixel by pixel."""

import numpy as np
import pytest

from v2r_core.video.resize import Preprocess, resize_frame, resize_frame_unit

VIP = Preprocess(size=224, mode="crop", resize_to=256)
TOLERANCE = 1e-5
HALF_A_LEVEL = 0.5 / 255


@pytest.mark.parametrize("size", ["240x320", "480x640"])
def test_unit_frames_equal_the_official_ones(parity_file, size):
    stored = parity_file("vip.npz")
    expected = stored[f"enc/preprocessed_{size}_slice"]
    for image, pixels in zip(stored[f"enc/img_{size}"], expected, strict=True):
        ours = resize_frame_unit(image.transpose(1, 2, 0), VIP)
        np.testing.assert_allclose(ours[::16, ::16].transpose(2, 0, 1), pixels, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", ["240x320", "480x640"])
def test_whole_levels_are_the_official_ones_rounded(parity_file, size):
    stored = parity_file("vip.npz")
    expected = stored[f"enc/preprocessed_{size}_slice"]
    for image, pixels in zip(stored[f"enc/img_{size}"], expected, strict=True):
        ours = resize_frame(np.ascontiguousarray(image.transpose(1, 2, 0)), VIP)[::16, ::16].transpose(2, 0, 1) / 255
        # Pillow rounds after each of its two passes, so up to one level and not a half.
        np.testing.assert_allclose(ours, pixels, rtol=0, atol=2 * HALF_A_LEVEL + TOLERANCE)


def test_frames_of_the_right_size_are_only_scaled(parity_file):
    image = parity_file("vip.npz")["enc/img_224"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(resize_frame_unit(image, VIP), image.astype(np.float32) / np.float32(255))
