"""Camera messages become pictures, by cv_bridge or without it."""

import numpy as np
import pytest

pytest.importorskip('lapdtr_ros.msg')

from sensor_msgs.msg import Image

from lapdtr_ros import camera_messages


def image(encoding, pixels, step=None, height=None):
    pixels = np.asarray(pixels, np.uint8)
    message = Image(
        height=pixels.shape[0] if height is None else height,
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.shape[1] * pixels.shape[2] if step is None else step,
    )
    message.data.frombytes(pixels.tobytes())
    return message


@pytest.mark.parametrize(
    ('encoding', 'pixel', 'rgb'),
    [
        ('rgb8', [1, 2, 3], [1, 2, 3]),
        ('bgr8', [1, 2, 3], [3, 2, 1]),
        ('rgba8', [1, 2, 3, 9], [1, 2, 3]),
        ('bgra8', [1, 2, 3, 9], [3, 2, 1]),
        ('mono8', [7], [7, 7, 7]),
    ],
)
def test_camera_encodings_become_rgb(encoding, pixel, rgb):
    picture = camera_messages.picture_from_msg(image(encoding, [[pixel, pixel]]))
    assert picture.shape == (1, 2, 3)
    assert picture[0, 1].tolist() == rgb


def test_row_padding_is_cut_off():
    message = image('mono8', [[[1], [2], [0], [0]], [[3], [4], [0], [0]]], step=4)
    message.width = 2
    assert camera_messages.picture_from_msg(message)[:, :, 0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', 'mono16', 'rgb16', ''])
def test_other_encodings_are_refused_by_name(encoding):
    with pytest.raises(camera_messages.ImageError, match=f'{encoding!r}.*rgb8'):
        camera_messages.picture_from_msg(image(encoding, np.zeros((2, 2, 3))))


def test_a_truncated_image_is_refused():
    message = image('rgb8', np.zeros((4, 4, 3)))
    message.data = message.data[:-1]
    with pytest.raises(camera_messages.ImageError, match='47 bytes'):
        camera_messages.picture_from_msg(message)


def test_an_empty_image_is_refused():
    with pytest.raises(camera_messages.ImageError):
        camera_messages.picture_from_msg(Image(encoding='rgb8'))


def test_what_only_cv_bridge_converts_is_told(monkeypatch):
    monkeypatch.setattr(camera_messages, '_cv_bridge', lambda: None)
    with pytest.raises(camera_messages.ImageError, match=r"'bayer_rggb8'.*install cv_bridge"):
        camera_messages.picture_from_msg(image('bayer_rggb8', np.zeros((2, 2, 1))))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8'])
@pytest.mark.parametrize('padding', [0, 1, 5])
def test_cv_bridge_gives_the_same_array(encoding, padding, monkeypatch):
    pytest.importorskip('cv_bridge')
    depth = {'mono8': 1}.get(encoding, 4 if 'a' in encoding else 3)
    rows = np.random.default_rng(0).integers(0, 256, (6, 7 * depth + padding, 1))
    message = image(encoding, rows)
    message.width = 7
    bridged = camera_messages.picture_from_msg(message)
    monkeypatch.setattr(camera_messages, '_cv_bridge', lambda: None)
    assert np.array_equal(bridged, camera_messages.picture_from_msg(message))
