"""Messages to pixels and back, and every way in which a message can be wrong."""

from __future__ import annotations

import array
import io

import numpy as np
import pytest
from PIL import Image as PillowImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from v2r_core.video.pixels import ImageError
from v2r_ros.images import camera_info, compressed_to_rgb, message_to_rgb, rgb_to_compressed, rgb_to_message

LIMIT = 1 << 20


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def message(data: bytes, height: int, width: int, step: int, encoding: str) -> Image:
    result = Image(height=height, width=width, step=step, encoding=encoding)
    result.data = array.array("B", data)
    return result


def test_rgb_round_trip() -> None:
    frame = picture()
    assert np.array_equal(message_to_rgb(rgb_to_message(frame), LIMIT), frame)


def test_bgra_with_padding() -> None:
    frame = picture()
    padded = np.zeros((6, 8 * 4 + 5), np.uint8)
    padded[:, :32] = np.dstack([frame[..., ::-1], np.full((6, 8), 9, np.uint8)]).reshape(6, -1)
    assert np.array_equal(message_to_rgb(message(padded.tobytes(), 6, 8, 37, "bgra8"), LIMIT), frame)


def test_mono_becomes_three_equal_channels() -> None:
    grey = picture()[..., 0]
    found = message_to_rgb(message(grey.tobytes(), 6, 8, 8, "mono8"), LIMIT)
    assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (message(b"", 6, 8, 24, "rgb8"), "0"),
        (message(bytes(144), 0, 8, 24, "rgb8"), "0"),
        (message(bytes(144), 6, 0, 0, "rgb8"), "0"),
        (message(bytes(144), 6, 4_000_000_000, 24, "rgb8"), "4000000000"),
        (message(bytes(144), 6, 8, 23, "rgb8"), "23"),
        (message(bytes(143), 6, 8, 24, "rgb8"), "143"),
        (message(bytes(144), 6, 8, 24, "16UC1"), "16UC1"),
        (message(bytes(144), 6, 8, 24, ""), "''"),
    ],
)
def test_a_broken_message_is_refused_and_named(broken: Image, word: str) -> None:
    with pytest.raises(ImageError, match=word):
        message_to_rgb(broken, LIMIT)


def test_an_unknown_encoding_names_the_remedy() -> None:
    with pytest.raises(ImageError, match="cv_bridge"):
        message_to_rgb(message(bytes(96), 6, 8, 16, "yuv422"), LIMIT)


def test_jpeg_round_trip_keeps_the_picture() -> None:
    frame = np.full((64, 48, 3), (200, 30, 90), np.uint8)
    found = compressed_to_rgb(rgb_to_compressed(frame), LIMIT, LIMIT)
    assert found.shape == frame.shape
    assert np.abs(found.astype(int) - frame).max() <= 4


def test_truncated_jpeg() -> None:
    whole = rgb_to_compressed(picture(64, 64))
    whole.data = whole.data[: len(whole.data) // 2]
    with pytest.raises(ImageError):
        compressed_to_rgb(whole, LIMIT, LIMIT)


def test_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    PillowImage.new("L", (8000, 8000)).save(buffer, "PNG")
    bomb = CompressedImage(format="png")
    bomb.data = array.array("B", buffer.getvalue())
    with pytest.raises(ImageError, match=str(LIMIT)):
        compressed_to_rgb(bomb, LIMIT, LIMIT)


def test_too_many_compressed_bytes() -> None:
    with pytest.raises(ImageError, match="100"):
        compressed_to_rgb(rgb_to_compressed(picture(64, 64)), 100, LIMIT)


def test_camera_info_puts_what_is_ahead_in_the_middle_and_is_zero_where_nothing_is_known() -> None:
    header = Header(frame_id="eye")
    info = camera_info(header, 8, 6, 10.0)
    assert (info.header, info.width, info.height) == (header, 8, 6)
    projection, matrix = info.p.reshape(3, 4), info.k.reshape(3, 3)
    x, y, w = projection @ (0, 0, 2, 1)
    assert (x / w, y / w) == (3.5, 2.5)  # between the pixels 3 and 4, 2 and 3
    x, y, w = projection @ (0.4, -0.2, 2, 1)  # right and up
    assert (x / w, y / w) == pytest.approx((3.5 + 2, 2.5 - 1))
    assert np.array_equal(projection[:, :3], matrix) and np.array_equal(info.r.reshape(3, 3), np.eye(3))
    unknown = camera_info(header, 8, 6, float("nan"))
    assert not unknown.k.any() and not unknown.p.any() and not unknown.r.any()
    assert list(unknown.d) == list(info.d) == [0] * 5
