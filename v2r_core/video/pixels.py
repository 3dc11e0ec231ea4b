"""From the bytes of an image message to pixels. The bytes come from a network, so all of them are checked first."""

from __future__ import annotations

import io
from array import array

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from v2r_core.video.resize import Frame

Bytes = bytes | bytearray | memoryview | array | NDArray[np.uint8]
"""What carries pixels: `array.array("B")` in ROS messages, `numpy` in bags, `bytes` elsewhere."""

MAX_PIXELS = 1 << 25
"""Largest image that is accepted by default: 33.5 million pixels, just above 8K."""

MAX_BYTES = 1 << 25
"""Longest compressed image that is accepted by default: 32 MiB."""

CHANNELS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
"""Encoding of a sensor_msgs/Image to (bytes a pixel, positions of red, green and blue among them)."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class ImageError(ValueError):
    """An image is not what it says or not what we take; the message names the field and its value."""


def image_to_rgb(
    data: Bytes,
    height: int,
    width: int,
    step: int,
    encoding: str,
    *,
    is_bigendian: bool | int = False,
    max_pixels: int = MAX_PIXELS,
) -> Frame:
    """Reads the fields of a sensor_msgs/Image.

    Args:
        data: the pixels, `step * height` bytes.
        height: rows.
        width: columns.
        step: bytes a row, padding included.
        encoding: one of `CHANNELS`.
        is_bigendian: without meaning for 8-bit pixels, which all supported encodings have; named in refusals.
        max_pixels: larger images are refused before anything is allocated.

    Returns:
        uint8 RGB (H, W, 3), C-contiguous. For `rgb8` without padding it is a view of `data`, read-only where `data`
        is; mono8 is repeated over the three channels; alpha is dropped.

    Raises:
        ImageError: a field is out of range, fields contradict each other, or the encoding is not supported.
    """
    if encoding not in CHANNELS:
        order = "big-endian" if is_bigendian else "little-endian"
        raise ImageError(
            f"encoding {encoding!r} ({order}) is not supported; publish one of {', '.join(CHANNELS)} "
            "(8-bit colour or grey: rectify, debayer or convert depth images first)"
        )
    _check_size(height, width, max_pixels)
    depth, order_rgb = CHANNELS[encoding]
    if step < width * depth:
        raise ImageError(f"step is {step}, but {width} {encoding} pixels need {width * depth} bytes a row")
    flat = _flat(data)
    if len(flat) != step * height:
        raise ImageError(f"data has {len(flat)} bytes, step * height = {step} * {height} = {step * height} expected")
    pixels = flat.reshape(height, step)[:, : width * depth].reshape(height, width, depth)
    if encoding == "rgb8":
        return np.ascontiguousarray(pixels)
    frame = np.empty((height, width, 3), np.uint8)
    # Three strided copies are five times faster than one copy of a reversed view.
    for channel, position in enumerate(order_rgb):
        frame[..., channel] = pixels[..., position]
    return frame


def decode_compressed(data: Bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Frame:
    """Decodes the JPEG or PNG of a sensor_msgs/CompressedImage.

    The format is read from the data, not from the message's `format` field, which drivers fill in many ways. EXIF
    orientation is ignored: a camera on a robot has none. Of an animated PNG the first image counts.

    Args:
        data: the file's bytes.
        max_bytes: longer data is refused.
        max_pixels: larger images are refused after the header, before any pixel is decoded.

    Returns:
        uint8 RGB (H, W, 3); alpha is dropped.

    Raises:
        ImageError: too long, too large, truncated, damaged, not 8-bit, or neither JPEG nor PNG.
    """
    flat = _flat(data)
    length = len(flat)
    if not 0 < length <= max_bytes:
        raise ImageError(f"compressed image has {length} bytes, 1 to {max_bytes} expected")
    try:
        with Image.open(io.BytesIO(flat.tobytes()), formats=("JPEG", "PNG")) as image:
            return rgb_of(image, max_pixels)
    except ImageError:
        raise
    except Exception as error:
        # Damaged data makes Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more;
        # they all mean the same to a caller.
        raise ImageError(f"{length} bytes are no whole JPEG or PNG image: {error}") from error


def rgb_of(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Frame:
    """Pixels of an image that Pillow has opened but not yet decoded.

    Args:
        image: straight from `Image.open`.
        max_pixels: larger images are refused before any pixel is decoded.

    Returns:
        uint8 RGB (H, W, 3); alpha is dropped.

    Raises:
        ImageError: too large or not 8-bit. Pillow's own errors pass through.
    """
    _check_size(image.height, image.width, max_pixels)
    if image.mode not in _MODES:
        raise ImageError(f"image has mode {image.mode!r} (not 8-bit); convert it to 8-bit colour or grey first")
    return np.asarray(image.convert("RGB"))


def _flat(data: Bytes) -> NDArray[np.uint8]:
    if len(data) == 0:
        return np.empty(0, np.uint8)
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ImageError(f"data is no contiguous buffer of bytes but {type(data).__name__}: {error}") from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"height x width is {height} x {width}, at least 1 x 1 expected")
    if height * width > max_pixels:
        raise ImageError(f"height x width is {height} x {width}, more than max_pixels = {max_pixels}")
