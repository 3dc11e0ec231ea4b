"""Image messages: every encoding, and every way to be wrong."""

import io
import warnings
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v2r_core.video.pixels import CHANNELS, ImageError, decode_compressed, image_to_rgb

H, W = 5, 7
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
ALPHA = np.full((H, W, 1), 9, np.uint8)
PIXELS = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
    "mono8": RGB[..., :1],
}


def packed(encoding: str, padding: int) -> tuple[bytes, int]:
    rows = np.ascontiguousarray(PIXELS[encoding]).reshape(H, -1)
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=77).tobytes(), rows.shape[1] + padding


def encoded(kind: str, image: np.ndarray | Image.Image = RGB, **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("padding", [0, 1, 11])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_encodings(encoding, padding):
    data, step = packed(encoding, padding)
    expected = RGB if encoding != "mono8" else np.repeat(RGB[..., :1], 3, axis=2)
    frame = image_to_rgb(data, H, W, step, encoding)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: array("B", b), np.array])
def test_every_kind_of_buffer(wrap):
    data, step = packed("bgr8", 3)
    buffer = np.frombuffer(data, np.uint8) if wrap is np.array else data
    np.testing.assert_array_equal(image_to_rgb(wrap(buffer), H, W, step, "bgr8"), RGB)


def test_tight_rgb_is_not_copied():
    data = bytearray(packed("rgb8", 0)[0])
    frame = image_to_rgb(data, H, W, W * 3, "rgb8")
    data[0] ^= 255
    assert frame[0, 0, 0] == data[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"height": 0}, "0 x 7"),
        ({"width": 0}, "5 x 0"),
        ({"width": -7}, "5 x -7"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, "max_pixels"),
        ({"max_pixels": H * W - 1}, "max_pixels = 34"),
        ({"step": W * 3 - 1}, "step is 20, but 7 rgb8 pixels need 21"),
        ({"step": 0}, "step is 0"),
        ({"step": W * 3 + 1}, "105 bytes"),
        ({"data": b""}, "data has 0 bytes"),
        ({"data": bytes(H * W * 3 - 1)}, "data has 104 bytes"),
        ({"data": bytes(H * W * 3 + 1)}, "data has 106 bytes"),
        ({"data": np.zeros(2 * H * W * 3, np.uint8)[::2]}, "contiguous"),
        ({"encoding": "16UC1"}, "'16UC1'.*rgb8"),
        ({"encoding": "mono16", "is_bigendian": 1}, "'mono16' .big-endian"),
        ({"encoding": "bayer_rggb8"}, "debayer"),
        ({"encoding": ""}, "''"),
        ({"encoding": "RGB8"}, "'RGB8'"),
    ],
)
def test_contradictions_are_refused(change, says):
    fields = {"data": packed("rgb8", 0)[0], "height": H, "width": W, "step": W * 3, "encoding": "rgb8"} | change
    with pytest.raises(ImageError, match=says):
        image_to_rgb(**fields)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.integers(-1, 2**32),
    st.integers(-1, 2**32),
    st.integers(0, 2**32),
    st.sampled_from([*CHANNELS, "32FC1"]),
)
def test_any_message_gives_an_image_or_an_image_error(data, height, width, step, encoding):
    try:
        frame = image_to_rgb(data, height, width, step, encoding)
    except ImageError:
        return
    assert frame.shape == (height, width, 3)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.sampled_from(sorted(CHANNELS)), st.integers(0, 2**32)
)
def test_pixels_survive_packing(height, width, padding, encoding, seed):
    depth, order = CHANNELS[encoding]
    step = width * depth + padding
    data = np.random.default_rng(seed).integers(0, 256, (height, step), dtype=np.uint8)
    frame = image_to_rgb(data.tobytes(), height, width, step, encoding)
    y, x = height - 1, width - 1
    assert [int(value) for value in frame[y, x]] == [int(data[y, x * depth + position]) for position in order]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_8_bit_mode(mode):
    picture = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(decode_compressed(encoded("PNG", picture)), np.asarray(picture.convert("RGB")))


def test_jpeg_is_close():
    smooth = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 64, 3))
    frame = decode_compressed(array("B", encoded("JPEG", np.ascontiguousarray(smooth), quality=95)))
    assert frame.shape == smooth.shape
    assert np.abs(frame.astype(int) - smooth.astype(int)).max() < 8


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"no image at all", "no whole JPEG or PNG"),
        (encoded("PNG")[:-30], "no whole JPEG or PNG"),
        (encoded("JPEG", np.tile(RGB, (20, 20, 1)))[:-500], "no whole JPEG or PNG"),
        (encoded("BMP"), "no whole JPEG or PNG"),
        (encoded("GIF"), "no whole JPEG or PNG"),
        (encoded("PNG", Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4))), "not 8-bit"),
    ],
)
def test_what_is_no_image_is_refused(data, says):
    with pytest.raises(ImageError, match=says):
        decode_compressed(data)


def test_limits_hold_before_decoding():
    bomb = encoded("PNG", Image.new("1", (20000, 20000)))
    assert len(bomb) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"20000 x 20000|decompression bomb"):
            decode_compressed(bomb)
    picture = encoded("PNG")
    with pytest.raises(ImageError, match="max_pixels = 34"):
        decode_compressed(picture, max_pixels=H * W - 1)
    with pytest.raises(ImageError, match=f"1 to {len(picture) - 1} expected"):
        decode_compressed(picture, max_bytes=len(picture) - 1)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_damaged_images_never_raise_anything_else(kind, data):
    whole = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame = decode_compressed(bytes(whole[: data.draw(st.integers(1, len(whole)))]))
        except ImageError:
            return
    assert frame.ndim == 3
