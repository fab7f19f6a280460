"""Camera pictures: resize, code as JPEG, normalise. Pictures are RGB, uint8, [H, W, 3]."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import PictureError
from .facts import ModelSpec

Picture = npt.NDArray[np.uint8]


def check_picture(picture: np.ndarray, shape: tuple[int, int, int] | None = None) -> None:
    """Refuse anything but a uint8 picture [H, W, 3], or [H, W, 3] of exactly one shape."""
    is_picture = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    if not is_picture or (shape is not None and picture.shape != shape):
        expected = 'H x W x 3' if shape is None else ' x '.join(map(str, shape))
        raise PictureError(
            f'picture is {picture.dtype} of shape {picture.shape}, expected uint8 of shape '
            f'{expected}; resize_picture gives the right size'
        )


def picture_to_input(picture: np.ndarray, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Normalise a picture for unit 0.

    Args:
        picture: uint8 RGB of shape ``spec.picture_shape``.
        spec: of the model.

    Returns:
        float32 [1, 3, H, W]: ``(picture / 255 - mean) / std`` per channel.

    Raises:
        PictureError: wrong shape or type.
    """
    check_picture(picture, spec.picture_shape)
    height, width, _ = spec.picture_shape
    result = np.empty((1, 3, height, width), np.float32)
    # Plane by plane, so that nothing is transposed; one product per value instead of two divisions.
    for plane, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        np.multiply(picture[:, :, plane], np.float32(1 / (255 * std)), out=result[0, plane])
        result[0, plane] -= np.float32(mean) / np.float32(std)
    return result


def resize_picture(picture: np.ndarray, size: tuple[int, int]) -> Picture:
    """Resize to (height, width), without keeping the aspect.

    Pillow's bilinear filter, whose support grows with the reduction, so shrinking does not alias.
    A picture that already has the size is returned as it is.
    """
    check_picture(picture)
    if picture.shape[:2] == size:
        return picture
    height, width = size
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def encode_jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    """Code a picture as JPEG.

    Args:
        picture: uint8 RGB [H, W, 3].
        quality: 1 to 95, Pillow's scale.

    Raises:
        PictureError: wrong shape or type, or a quality outside 1 to 95.
    """
    check_picture(picture)
    if not 1 <= quality <= 95:
        raise PictureError(f'JPEG quality {quality}: expected 1 to 95')
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Picture:
    """Decode a JPEG to uint8 RGB [H, W, 3].

    Raises:
        PictureError: truncated, or no JPEG.
    """
    try:
        with Image.open(io.BytesIO(data), formats=['JPEG']) as image:
            return np.asarray(image.convert('RGB'))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise PictureError(
            f'{len(data)} bytes are no complete JPEG ({error}); the sender must code it again'
        ) from error


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG's header states; nothing is decoded.

    Raises:
        PictureError: no JPEG header.
    """
    try:
        with Image.open(io.BytesIO(data), formats=['JPEG']) as image:
            return image.height, image.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise PictureError(f'{len(data)} bytes have no header of a JPEG ({error})') from error
