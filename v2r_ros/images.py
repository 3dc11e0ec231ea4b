"""Image messages to RGB arrays and back: numpy for the 8-bit encodings, cv_bridge (a robot's) for the exotic ones."""

from __future__ import annotations

import array
import math
from io import BytesIO

import numpy as np
from PIL import Image as PillowImage
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from v2r_core.video.pixels import CHANNELS, ImageError, decode_compressed, image_to_rgb
from v2r_core.video.resize import Frame


def message_to_rgb(message: Image, max_pixels: int) -> Frame:
    """A raw image message as uint8 RGB (H, W, 3); a view of the message's data where that is possible.

    Raises:
        ImageError: wrong sizes, too many pixels, or an encoding that cannot be converted here.
    """
    if message.encoding in CHANNELS:
        return image_to_rgb(
            message.data,
            message.height,
            message.width,
            message.step,
            message.encoding,
            is_bigendian=bool(message.is_bigendian),
            max_pixels=max_pixels,
        )
    if not 0 < message.height * message.width <= max_pixels:
        raise ImageError(f"{message.width}x{message.height} pixels; between 1 and {max_pixels} are accepted")
    return _with_cv_bridge(message)


def _with_cv_bridge(message: Image) -> Frame:
    try:
        from cv_bridge import CvBridge  # noqa: PLC0415 (optional, and only for rare encodings)
    except ImportError as error:
        raise ImageError(
            f"encoding {message.encoding!r} is not one of {sorted(CHANNELS)} and cv_bridge is not installed; "
            "install ros-jazzy-cv-bridge or let the camera driver publish rgb8"
        ) from error
    try:
        frame = CvBridge().imgmsg_to_cv2(message, "rgb8")
    except Exception as error:  # cv_bridge raises whatever OpenCV, numpy or its own table raise
        raise ImageError(f"cv_bridge cannot convert {message.encoding!r} to rgb8: {error}") from error
    return np.ascontiguousarray(frame, dtype=np.uint8)


def compressed_to_rgb(message: CompressedImage, max_bytes: int, max_pixels: int) -> Frame:
    """A JPEG or PNG message as uint8 RGB (H, W, 3).

    Raises:
        ImageError: too large before or after decoding, truncated, or no image.
    """
    return decode_compressed(message.data, max_bytes, max_pixels)


def rgb_to_message(frame: Frame) -> Image:
    """An rgb8 image message with an empty header from uint8 RGB (H, W, 3)."""
    height, width, _ = frame.shape
    message = Image(height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width)
    # An array.array is taken as it is; an ndarray or a list would be checked element by element (0.1 s a frame).
    message.data = array.array("B", frame.tobytes())
    return message


def rgb_to_compressed(frame: Frame, quality: int = 90) -> CompressedImage:
    """A JPEG message with an empty header from uint8 RGB (H, W, 3)."""
    buffer = BytesIO()
    PillowImage.fromarray(frame).save(buffer, "JPEG", quality=quality)
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.data = array.array("B", buffer.getvalue())
    return message


def camera_info(header: Header, width: int, height: int, focal_length: float) -> CameraInfo:
    """What camera_info says of a pinhole camera without distortion that looks through the middle of its image.

    Args:
        header: of the image.
        width: of the image in pixels.
        height: of the image in pixels.
        focal_length: in pixels; NaN: unknown, and the matrices are zeros, which means that it is not calibrated.
    """
    info = CameraInfo(header=header, height=height, width=width, distortion_model="plumb_bob")
    info.d = array.array("d", [0.0] * 5)
    if math.isfinite(focal_length):
        # Whole numbers are the middles of pixels, as image_geometry and OpenCV have it.
        x, y = (width - 1) / 2, (height - 1) / 2
        info.k = np.array([focal_length, 0, x, 0, focal_length, y, 0, 0, 1])
        info.r = np.eye(3).ravel()
        info.p = np.array([focal_length, 0, x, 0, 0, focal_length, y, 0, 0, 0, 1, 0])
    return info
