"""Pictures: normalisation, resizing and JPEG."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.models.errors import PictureError
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.preprocess import (
    decode_jpeg,
    encode_jpeg,
    picture_to_input,
    resize_picture,
)


def random_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def gradient(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)


def test_input_is_normalised_per_channel_in_rgb_order():
    spec = model_spec('deit_tiny_patch16_224')
    picture = random_picture(224, 224)
    result = picture_to_input(picture, spec)
    expected = (picture / 255.0 - spec.mean) / spec.std
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result[0], expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    'picture',
    [
        random_picture(224, 223),
        random_picture(224, 224).astype(np.float32),
        random_picture(224, 224)[:, :, 0],
        random_picture(224, 224).transpose(2, 0, 1),
    ],
    ids=['size', 'type', 'grey', 'channels first'],
)
def test_wrong_pictures_are_refused_with_the_expected_shape(picture):
    with pytest.raises(PictureError, match='expected uint8 of shape 224 x 224 x 3'):
        picture_to_input(picture, model_spec('deit_tiny_patch16_224'))


def test_resizing_gives_the_size_and_keeps_a_fitting_picture():
    picture = gradient(60, 80)
    assert resize_picture(picture, (30, 50)).shape == (30, 50, 3)
    assert resize_picture(picture, (60, 80)) is picture


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    inner = resize_picture(stripes, (16, 16))[2:-2]
    assert np.abs(inner.astype(int) - 127).max() < 32


@settings(max_examples=20, deadline=None)
@given(height=st.integers(8, 120), width=st.integers(8, 120))
def test_jpeg_keeps_shape_and_smooth_content(height, width):
    picture = gradient(height, width)
    decoded = decode_jpeg(encode_jpeg(picture, quality=95))
    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.95))
def test_a_truncated_jpeg_is_refused(share):
    data = encode_jpeg(random_picture(64, 64))
    with pytest.raises(PictureError, match='no complete JPEG'):
        decode_jpeg(data[: int(share * len(data))])


def test_bytes_that_are_no_jpeg_are_refused():
    with pytest.raises(PictureError, match='5 bytes'):
        decode_jpeg(b'hello')


def test_jpeg_quality_outside_the_scale_is_refused():
    with pytest.raises(PictureError, match='quality 0'):
        encode_jpeg(random_picture(8, 8), quality=0)
