import io

import numpy as np
import pytest
from PIL import Image

from lapdtr_ros.evaluation.pictures import (
    GREEN,
    ORANGE,
    SKY,
    PictureError,
    bird_view,
    draw_boxes_3d,
    encode_png,
    heat_colours,
    in_rows,
    overlay_heat,
    side_by_side,
    titled,
)

GREY = np.full((60, 100, 3), 128, np.uint8)
BOX_PX = np.array(
    [[[40, 50], [60, 50], [66, 44], [46, 44], [40, 30], [60, 30], [66, 24], [46, 24]]], float
)


def ground_box(x, y, length=4.0, width=2.0):
    half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length / 2, width / 2)
    return (half + np.array([x, y]))[None]


def where(picture, colour, tolerance=40):
    """Middle (column, row) of the area that the pixels near a colour span."""
    near = np.abs(picture.astype(int) - colour).sum(axis=2) < tolerance
    assert near.any()
    rows, columns = np.nonzero(near)
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


def test_heat_changes_the_hot_place_and_leaves_the_cold_one():
    heat = np.zeros((6, 10))
    heat[1, 8] = 5.0
    result = overlay_heat(GREY, heat)
    difference = np.abs(result.astype(int) - GREY).sum(axis=2)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert abs(row - 15) < 6
    assert abs(column - 85) < 6
    assert difference[50, 10] == 0
    assert (GREY == 128).all()


@pytest.mark.parametrize('heat', [np.full((2, 2), 3.0), np.full((2, 2), np.nan)])
def test_heat_without_any_difference_leaves_the_picture(heat):
    assert (overlay_heat(GREY, heat) == GREY).all()


def test_heat_survives_places_that_are_not_finite():
    heat = np.array([[0.0, np.nan], [1.0, np.inf]])
    assert (overlay_heat(GREY, heat) != GREY).any()


def test_lightness_of_heat_rises_all_the_way():
    luma = heat_colours() @ np.array([0.2126, 0.7152, 0.0722])
    assert luma[0] < 30
    assert luma[-1] > 220
    assert (luma[8:] > luma[:-8]).all()


def test_side_by_side_scales_to_the_first_height():
    result = side_by_side([GREY, np.zeros((30, 20, 3), np.uint8)], gap=4)
    assert result.shape == (60, 100 + 4 + 40, 3)
    assert (result[:, 100:104] == 255).all()


def test_png_holds_the_picture_without_loss():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert image.format == 'PNG'
        assert (np.asarray(image) == picture).all()


def test_boxes_are_drawn_on_their_edges_with_a_tinted_front():
    result = draw_boxes_3d(GREY, BOX_PX)
    assert np.abs(result[50, 50].astype(int) - GREEN).sum() < 60
    assert (result[40, 50] != 128).any()
    assert (result[35, 80] == 128).all()
    assert (result[5, 5] == 128).all()


def test_edges_to_corners_behind_the_camera_are_left_out():
    hidden = BOX_PX.copy()
    hidden[0, :4] = np.nan
    result = draw_boxes_3d(GREY, hidden, ['half seen'])
    assert (result[50, 50] == 128).all()
    assert np.abs(result[30, 50].astype(int) - GREEN).sum() < 60
    nothing = draw_boxes_3d(GREY, np.full((1, 8, 2), np.nan), ['unseen'])
    assert (nothing == GREY).all()


def test_labels_stay_inside_the_picture():
    above = BOX_PX - (45, 40)
    result = draw_boxes_3d(GREY, above, ['car'])
    assert (result[2:8, 2:12] != 128).any()


@pytest.mark.parametrize('y_axis', ['left', 'right'])
def test_bird_view_puts_ahead_to_the_right_and_left_to_the_top(y_axis):
    left = 10.0 if y_axis == 'left' else -10.0
    empty = np.zeros((0, 4, 2))
    view = (-40.0, -20.0, 40.0, 20.0)
    truth = bird_view(ground_box(20.0, left), empty, view, y_axis=y_axis, width=400)
    assert truth.shape == (200, 400, 3)
    # Below the legend, which uses the same colours.
    column, row = where(truth[30:], GREEN)
    assert column == pytest.approx(300, abs=12)
    assert row + 30 == pytest.approx(50, abs=5)


def test_partners_are_marked_where_they_are():
    empty = np.zeros((0, 4, 2))
    view = (-50.0, -50.0, 50.0, 50.0)
    partners = {'650': (0.0, 25.0, 1.0)}
    picture = bird_view(empty, empty, view, y_axis='right', width=400, partners=partners)
    column, row = where(picture[40:], SKY)  # below the legend
    assert abs(column - 200) < 12
    assert abs(row + 40 - 300) < 18


def test_pictures_in_rows_take_the_size_of_the_first_and_leave_the_rest_white():
    result = in_rows([GREY, GREY[:30], GREY], columns=2, gap=4)
    assert result.shape == (124, 204, 3)
    assert (result[:60, :100] == 128).all()
    assert (result[:60, 104:] == 128).all()
    assert (result[64:, 104:] == 255).all()


def test_a_title_changes_the_upper_left_corner_only():
    changed = (titled(GREY, 'ego') != GREY).any(axis=2)
    assert changed[:30, :60].any()
    assert not changed[:, 70:].any()
    assert not changed[45:].any()


def test_bird_view_with_an_uneven_range_keeps_the_place():
    empty = np.zeros((0, 4, 2))
    view = bird_view(
        empty, ground_box(10.0, 0.0), (0.0, -10.0, 40.0, 30.0), y_axis='right', width=400
    )
    column, row = where(view[30:], ORANGE)
    assert column == pytest.approx(100, abs=12)
    assert row + 30 == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: overlay_heat(GREY.astype(float), np.zeros((2, 2))), 'float64'),
        (lambda: overlay_heat(GREY, np.zeros(4)), r'heat has shape \(4,\)'),
        (lambda: side_by_side([]), 'at least one'),
        (lambda: in_rows([], 2), 'at least one'),
        (lambda: draw_boxes_3d(GREY, np.zeros((1, 4, 2))), 'corners_px has shape'),
        (lambda: draw_boxes_3d(GREY, BOX_PX, ['a', 'b']), '2 labels for 1 boxes'),
        (lambda: bird_view(ground_box(0, 0), ground_box(0, 0), (5, 0, 1, 1)), 'view_range'),
        (lambda: bird_view(np.zeros((1, 7)), ground_box(0, 0), (0, 0, 1, 1)), 'ground_truth'),
    ],
)
def test_wrong_arrays_are_refused_with_their_shape(call, words):
    with pytest.raises(PictureError, match=words):
        call()
