"""Camera messages of ROS from and to pictures: uint8 RGB arrays of shape (height, width, 3)."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from sensor_msgs.msg import CompressedImage, Image

from .conversions import bytes_to_msg, header_to_msg
from .errors import LapdtrError

# Encoding -> (bytes per pixel, channel order that gives RGB).
_ENCODINGS = {
    'rgb8': (3, (0, 1, 2)),
    'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)),
}

# What only cv_bridge turns into colours -> bytes per pixel.
_CV_BRIDGE_ENCODINGS = {
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
    'bayer_grbg8': 1,
    'yuv422': 2,
    'yuv422_yuy2': 2,
}

# Modes of Pillow with at most 8 bits per channel.
_PICTURE_MODES = ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK')


class ImageError(LapdtrError):
    """A camera message that holds no usable picture."""


def picture_from_msg(msg: Image) -> np.ndarray:
    """A camera picture.

    cv_bridge converts where it is installed; elsewhere NumPy gives the same array for the
    encodings that need no interpolation.

    Raises:
        ImageError: an encoding other than 8-bit colour or grey, or too few data.
    """
    bridge = _cv_bridge()
    rows = _rows(msg, _pixel_bytes(msg.encoding, bridge is not None))
    return _by_numpy(msg, rows) if bridge is None else _by_cv_bridge(msg, rows, bridge)


def picture_to_msg(pixels: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """A message of a camera picture.

    Args:
        pixels: uint8 RGB, (height, width, 3).
        stamp_ns: time of the picture.
        frame_id: frame of the camera's body (x forward); the message names the optical one.
    """
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    return Image(
        header=header_to_msg(stamp_ns, f'{frame_id}_optical'),
        height=height,
        width=width,
        encoding='rgb8',
        step=3 * width,
        data=bytes_to_msg(np.ascontiguousarray(pixels).data.cast('B')),
    )


def compressed_picture_from_msg(msg: CompressedImage) -> np.ndarray:
    """A compressed camera picture.

    The format text of a message is not looked at: drivers write it in many ways, the data say
    what they are.

    Raises:
        ImageError: neither JPEG nor PNG, truncated, or more than 8 bits per channel.
    """
    try:
        with PillowImage.open(io.BytesIO(bytes(msg.data)), formats=['JPEG', 'PNG']) as picture:
            if picture.mode not in _PICTURE_MODES:
                raise ImageError(
                    f'compressed image ({msg.format!r}) has mode {picture.mode}; publish 8-bit '
                    f'colour or grey'
                )
            return np.asarray(picture.convert('RGB'))
    except (OSError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise ImageError(
            f'compressed image ({msg.format!r}, {len(msg.data)} bytes) is no complete JPEG or '
            f'PNG: {error}'
        ) from error


def compressed_picture_to_msg(
    data: bytes, kind: str, stamp_ns: int, frame_id: str
) -> CompressedImage:
    """A picture file as it is.

    Args:
        data: the file's content.
        kind: ``png`` or ``jpeg``.
        stamp_ns: time of the picture.
        frame_id: frame of the camera's body (x forward); the message names the optical one.
    """
    stamped = header_to_msg(stamp_ns, f'{frame_id}_optical')
    return CompressedImage(header=stamped, format=str(kind), data=bytes_to_msg(data))


def any_picture_from_msg(msg: Image | CompressedImage) -> np.ndarray:
    """A camera picture of either type; see `picture_from_msg`, `compressed_picture_from_msg`."""
    if isinstance(msg, CompressedImage):
        return compressed_picture_from_msg(msg)
    return picture_from_msg(msg)


@functools.cache
def _cv_bridge() -> Any | None:
    """The converter of cv_bridge, None where it is missing or built for another NumPy."""
    try:
        from cv_bridge import CvBridge
        from cv_bridge.boost import cv_bridge_boost  # noqa: F401  imported late by CvBridge
    except (ImportError, AttributeError):
        return None
    return CvBridge()


def _pixel_bytes(encoding: str, bridged: bool) -> int:
    if encoding in _ENCODINGS:
        return _ENCODINGS[encoding][0]
    if bridged and encoding in _CV_BRIDGE_ENCODINGS:
        return _CV_BRIDGE_ENCODINGS[encoding]
    needs = ' or install cv_bridge' if encoding in _CV_BRIDGE_ENCODINGS else ''
    raise ImageError(
        f'image encoding {encoding!r} is not supported; publish one of '
        f'{", ".join(_ENCODINGS)}{needs}'
    )


def _rows(msg: Image, pixel_bytes: int) -> np.ndarray:
    """The rows of pixels without their padding, (height, bytes)."""
    row = msg.width * pixel_bytes
    if msg.height == 0 or msg.width == 0 or msg.step < row or len(msg.data) < msg.height * msg.step:
        raise ImageError(
            f'image of {msg.width} x {msg.height} {msg.encoding} needs {msg.height} rows of '
            f'at least {row} bytes; got a step of {msg.step} and {len(msg.data)} bytes'
        )
    rows = np.frombuffer(msg.data, np.uint8)[: msg.height * msg.step].reshape(msg.height, msg.step)
    return rows[:, :row]


def _by_numpy(msg: Image, rows: np.ndarray) -> np.ndarray:
    depth, order = _ENCODINGS[msg.encoding]
    return np.ascontiguousarray(rows.reshape(msg.height, msg.width, depth)[:, :, order])


def _by_cv_bridge(msg: Image, rows: np.ndarray, bridge: Any) -> np.ndarray:
    # It divides the step by the pixel's size, which goes wrong for padding of other sizes.
    if msg.step != rows.shape[1]:
        msg = Image(
            header=msg.header,
            height=msg.height,
            width=msg.width,
            encoding=msg.encoding,
            step=rows.shape[1],
            data=bytes_to_msg(np.ascontiguousarray(rows).data.cast('B')),
        )
    try:
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(msg, 'rgb8'))
    except Exception as error:  # of OpenCV, Boost or NumPy, whatever the message is like
        raise ImageError(
            f'cv_bridge cannot convert the {msg.encoding} image of {msg.width} x {msg.height}: '
            f'{error}'
        ) from error
