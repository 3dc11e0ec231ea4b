"""Resizing: sizes, identity, exactness against a slow reference, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v2r_core.video.resize import Preprocess, resize_frame, resize_frame_unit

SQUASH = Preprocess(size=32, mode="squash")
CROP = Preprocess(size=28, mode="crop", resize_to=32)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def triangle(source: int, target: int) -> np.ndarray:
    """Rows of weights of the antialiased bilinear filter, written down from its definition."""
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(source)[None] + 0.5 - centres) / support)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(frame: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    height, width = frame.shape[:2]
    size = preprocess.size
    if preprocess.mode == "squash":
        rows, columns, top, left = size, size, 0, 0
    else:
        short = min(height, width)
        rows, columns = int(preprocess.resize_to * height / short), int(preprocess.resize_to * width / short)
        top, left = round((rows - size) / 2), round((columns - size) / 2)
    full = np.einsum("yh,hwc,xw->yxc", triangle(height, rows), frame / 255, triangle(width, columns))
    return full[top : top + size, left : left + size]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([SQUASH, CROP]), st.integers(0, 9))
def test_both_functions_equal_the_filter_by_definition(height, width, preprocess, seed):
    frame = noise(height, width, seed)
    size = preprocess.size
    whole, unit = resize_frame(frame, preprocess), resize_frame_unit(frame, preprocess)
    assert whole.shape == unit.shape == (size, size, 3)
    assert (whole.dtype, unit.dtype) == (np.uint8, np.float32)
    expected = frame / 255 if (height, width) == (size, size) else reference(frame, preprocess)
    np.testing.assert_allclose(unit, expected, rtol=0, atol=2e-5)
    # Pillow rounds after each of two passes.
    np.testing.assert_allclose(whole / 255, expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (720, 1280), (100, 321)])
def test_crop_by_box_equals_resize_then_crop(height, width):
    frame = noise(height, width)
    short = min(height, width)
    rows, columns = int(256 * height / short), int(256 * width / short)
    top, left = round((rows - 224) / 2), round((columns - 224) / 2)
    full = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BILINEAR)
    two_steps = np.asarray(full)[top : top + 224, left : left + 224]
    one_step = resize_frame(frame, Preprocess(size=224, mode="crop", resize_to=256))
    assert np.abs(one_step.astype(int) - two_steps.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_frame_of_the_right_size_is_returned_itself(mode):
    frame = noise(48, 48)
    assert resize_frame(frame, Preprocess(size=48, mode=mode)) is frame


def test_antialiasing_removes_a_fine_checkerboard():
    board = np.indices((448, 448)).sum(axis=0) % 2 * 255
    frame = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert np.ptp(resize_frame(frame, Preprocess(size=64))[2:-2, 2:-2]) <= 2


def test_strided_and_read_only_frames_are_accepted():
    frame = noise(60, 80)
    flipped = frame[:, ::-1]
    frozen = np.ascontiguousarray(flipped)
    frozen.setflags(write=False)
    np.testing.assert_array_equal(resize_frame(flipped, SQUASH), resize_frame(frozen, SQUASH))


@pytest.mark.parametrize("function", [resize_frame, resize_frame_unit])
@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((8, 0, 3), np.uint8), "no pixels"),
    ],
)
def test_bad_frames_are_refused(function, frame, says):
    with pytest.raises(ValueError, match=says):
        function(frame, SQUASH)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"mode": "stretch"}, "'stretch'"),
        ({"size": 224, "mode": "crop", "resize_to": 200}, "resize_to is 200"),
    ],
)
def test_bad_preprocess_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Preprocess(**arguments)
