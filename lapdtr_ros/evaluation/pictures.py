"""Pictures of what a fleet sees: heat over a camera picture, boxes in it, a view from above.

All functions take and return plain arrays; pictures are uint8 RGB of shape (height, width, 3).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lapdtr_ros.errors import LapdtrError

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
_ToPixels = Callable[[NDArray[np.floating]], NDArray[np.floating]]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
ORANGE: Colour = (230, 159, 0)
SKY: Colour = (86, 180, 233)
GREEN: Colour = (0, 158, 115)
YELLOW: Colour = (240, 228, 66)
WHITE: Colour = (255, 255, 255)

# Drawn at this multiple and shrunk, which smooths all lines.
_SMOOTH = 3

# Height of letters in the bird view, pixels.
_LETTERS = 14

# Corners 0-3 are the bottom, 4-7 the top above them; 0-1 and 4-5 are the front.
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
_FRONT = (0, 1, 5, 4)

_INK: Colour = (24, 29, 36)
_GRID: Colour = (64, 74, 88)
_FAINT: Colour = (140, 150, 164)


class PictureError(LapdtrError):
    """An array that is not what a drawing function takes."""


def overlay_heat(picture: Picture, heat: NDArray[np.floating], opacity: float = 0.75) -> Picture:
    """Lay a heat map over a picture; the hottest places cover it most.

    Args:
        picture: (H, W, 3) uint8.
        heat: (h, w) of any size and range; it is stretched over the picture, its smallest value
            is coldest and its largest hottest. Values that are not finite count as coldest.
        opacity: share of the map's colour at the hottest place, 0 to 1.

    Returns:
        (H, W, 3) uint8. A heat map without any difference leaves the picture as it is.
    """
    _check_picture(picture)
    if heat.ndim != 2 or not heat.size:
        raise PictureError(f'heat has shape {heat.shape}, expected (height, width)')
    height, width = picture.shape[:2]
    level = Image.fromarray(_normalised(heat)).resize((width, height), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(level), 0.0, 1.0)
    colours = heat_colours()[np.rint(share * 255).astype(np.intp)]
    alpha = opacity * share[..., None] ** 0.7 if share.any() else share[..., None]
    return _to_picture(picture * (1.0 - alpha) + colours * alpha)


def heat_colours() -> Picture:
    """The 256 colours of heat, (256, 3) uint8: dark blue, violet, orange, pale yellow.

    Lightness rises in equal steps of the OKLab colour space, so equal differences of heat look
    equal and the map survives grey print.
    """
    anchors = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    at = np.linspace(0.0, 1.0, 256)
    lightness = 0.22 + 0.73 * at
    green_red = np.interp(at, anchors, [0.005, 0.110, 0.150, 0.075, -0.030])
    blue_yellow = np.interp(at, anchors, [-0.090, -0.110, 0.035, 0.140, 0.120])
    return _to_picture(_oklab_to_srgb(lightness, green_red, blue_yellow) * 255.0)


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Put pictures next to each other, scaled to the height of the first, ``gap`` white between."""
    if not pictures:
        raise PictureError('side_by_side got no picture: give at least one')
    height = pictures[0].shape[0]
    columns: list[Picture] = []
    for picture in pictures:
        _check_picture(picture)
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        if columns:
            columns.append(np.full((height, gap, 3), 255, np.uint8))
        scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        columns.append(np.asarray(scaled))
    return np.concatenate(columns, axis=1)


def in_rows(pictures: Sequence[Picture], columns: int, gap: int = 8) -> Picture:
    """Put pictures in rows of ``columns``, all at the size of the first; the rest stays white."""
    if not pictures:
        raise PictureError('in_rows got no picture: give at least one')
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    shape = rows * (height + gap) - gap, columns * (width + gap) - gap, 3
    canvas = np.full(shape, 255, np.uint8)
    for place, picture in enumerate(pictures):
        _check_picture(picture)
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        canvas[top : top + height, left : left + width] = np.asarray(scaled)
    return canvas


def titled(picture: Picture, title: str) -> Picture:
    """The picture with a short title on a plate in its upper left corner."""
    _check_picture(picture)
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(_LETTERS, canvas.height // 24))
    left, top, right, bottom = pen.textbbox((16, 14), title, font=font)
    pen.rounded_rectangle((left - 8, top - 6, right + 8, bottom + 6), 4, fill=_INK)
    pen.text((16, 14), title, fill=WHITE, font=font)
    return np.asarray(canvas)


def encode_png(picture: Picture) -> bytes:
    """The picture as PNG file."""
    _check_picture(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def draw_boxes_3d(
    picture: Picture,
    corners_px: NDArray[np.floating],
    labels: Sequence[str] = (),
    colour: Colour = GREEN,
) -> Picture:
    """Draw projected boxes into a camera picture, the front face tinted.

    Args:
        picture: (H, W, 3) uint8.
        corners_px: (N, 8, 2) pixels (column, row). Corners 0-3 are the bottom and 4-7 the top
            above them, 0-1-5-4 the front. NaN marks a corner behind the camera; its edges are
            left out.
        labels: one short text per box, or none at all.
        colour: of lines and tint.

    Returns:
        (H, W, 3) uint8, the picture given is not changed.
    """
    _check_picture(picture)
    _check_shape('corners_px', corners_px, (8, 2))
    _check_labels(labels, len(corners_px))
    height, width = picture.shape[:2]
    layer = Image.new('RGBA', (width * _SMOOTH, height * _SMOOTH), (*colour, 0))
    pen = ImageDraw.Draw(layer)
    stroke = max(2, round(height / 240)) * _SMOOTH
    for corners in corners_px:
        points = corners * _SMOOTH
        if np.isfinite(points[list(_FRONT)]).all():
            pen.polygon(_points(points[list(_FRONT)]), fill=(*colour, 70))
        edges = [points[list(ends)] for ends in _EDGES]
        seen = [_points(edge) for edge in edges if np.isfinite(edge).all()]
        # A dark rim keeps the lines apart from a picture of the same colour.
        for fill, width_px in (((*_INK, 150), 2 * stroke), ((*colour, 255), stroke)):
            for edge in seen:
                pen.line(edge, fill=fill, width=width_px)
    result = Image.fromarray(picture).convert('RGBA')
    result.alpha_composite(layer.resize((width, height), Image.Resampling.LANCZOS))
    _draw_labels(result, corners_px, labels, colour)
    return np.asarray(result.convert('RGB'))


def bird_view(
    ground_truth: NDArray[np.floating],
    detections: NDArray[np.floating],
    view_range: tuple[float, float, float, float],
    scores: Sequence[float] = (),
    y_axis: Literal['left', 'right'] = 'left',
    width: int = 900,
    partners: Mapping[str, tuple[float, float, float]] | None = None,
) -> Picture:
    """Boxes seen from above with the ego vehicle in the origin looking to the right.

    Args:
        ground_truth: (N, 4, 2) ground corners (x, y) in metres in the ego frame, x forward;
            corners 0-1 are the front.
        detections: (M, 4, 2), likewise.
        view_range: (x_min, y_min, x_max, y_max) of the view in metres.
        scores: one per detection, written beside it, or none at all.
        y_axis: whether y grows to the left of the ego vehicle (ROS) or to the right (OPV2V).
        width: of the picture in pixels; the height follows from the range.
        partners: other connected vehicles by name, (x, y) in metres and yaw from x to y in radians.

    Returns:
        (H, W, 3) uint8.
    """
    _check_shape('ground_truth', ground_truth, (4, 2))
    _check_shape('detections', detections, (4, 2))
    _check_labels(scores, len(detections))
    x_min, y_min, x_max, y_max = view_range
    if not (x_max > x_min and y_max > y_min):
        raise PictureError(
            f'view_range is {view_range}, expected (x_min, y_min, x_max, y_max) with min < max'
        )
    scale = width * _SMOOTH / (x_max - x_min)
    height = round(width * (y_max - y_min) / (x_max - x_min))
    up = 1.0 if y_axis == 'left' else -1.0
    y_top = y_max if y_axis == 'left' else -y_min

    def to_pixels(points: NDArray[np.floating]) -> NDArray[np.floating]:
        return (points * (1.0, up) * (1.0, -1.0) + (-x_min, y_top)) * scale

    canvas = Image.new('RGB', (width * _SMOOTH, height * _SMOOTH), _INK)
    pen = ImageDraw.Draw(canvas, 'RGBA')
    _draw_rings(pen, to_pixels, _ring_radii(view_range))
    for corners in ground_truth:
        _draw_ground_box(pen, to_pixels(corners), GREEN, filled=True)
    for corners in detections:
        _draw_ground_box(pen, to_pixels(corners), ORANGE, filled=False)
    partners = partners or {}
    for x, y, yaw in partners.values():
        pen.polygon(_points(to_pixels(_arrow(x, y, yaw))), fill=SKY)
    pen.polygon(_points(to_pixels(_arrow(0.0, 0.0, 0.0))), fill=WHITE)
    canvas = canvas.resize((width, height), Image.Resampling.LANCZOS)
    _write_bird_view(canvas, to_pixels, detections, scores)
    _write_partners(canvas, to_pixels, partners)
    return np.asarray(canvas)


def _draw_ground_box(
    pen: ImageDraw.ImageDraw, pixels: NDArray[np.floating], colour: Colour, filled: bool
) -> None:
    """A box from above with a stroke from its centre through its front."""
    if not np.isfinite(pixels).all():
        return
    outline = _points(pixels)
    if filled:
        pen.polygon(outline, fill=(*colour, 90))
    pen.line([*outline, outline[0], outline[1]], fill=colour, width=2 * _SMOOTH, joint='curve')
    nose = pixels[:2].mean(axis=0)
    pen.line(_points(np.stack([pixels.mean(axis=0), nose])), fill=colour, width=2 * _SMOOTH)


def _arrow(x: float, y: float, yaw: float) -> NDArray[np.floating]:
    """Outline (4, 2) in metres of the mark of a connected vehicle."""
    outline = np.array([[2.6, 0.0], [-1.8, 1.1], [-1.0, 0.0], [-1.8, -1.1]])
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return outline @ turn + (x, y)


def _ring_radii(view_range: tuple[float, float, float, float]) -> list[int]:
    """Radii of the distance rings in metres, at most six."""
    reach = max(abs(value) for value in view_range)
    step = next(step for step in (5, 10, 20, 50, 100, 10**9) if reach / step <= 6)
    return list(range(step, int(reach) + 1, step))


def _draw_rings(pen: ImageDraw.ImageDraw, to_pixels: _ToPixels, radii: Sequence[int]) -> None:
    """Distance rings around the ego vehicle, drawn first so that they cover no box."""
    font = ImageFont.load_default(_LETTERS * _SMOOTH)
    for radius in radii:
        corners = to_pixels(np.array([[-radius, -radius], [radius, radius]], float))
        box = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
        pen.ellipse(box, outline=_GRID, width=_SMOOTH)
        x, y = to_pixels(np.array([[radius, 0.0]], float))[0]
        place = (x - 4 * _SMOOTH, y + 3 * _SMOOTH)
        pen.text(place, f'{radius} m', fill=_FAINT, font=font, anchor='ra')


def _write_bird_view(
    canvas: Image.Image,
    to_pixels: _ToPixels,
    detections: NDArray[np.floating],
    scores: Sequence[float],
) -> None:
    """Scores and legend, written after shrinking so that letters stay crisp."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LETTERS)
    for corners, score in zip(detections, scores, strict=False):
        if np.isfinite(corners).all():
            right, top = to_pixels(corners)[:, 0].max(), to_pixels(corners)[:, 1].min()
            place = (right / _SMOOTH + 3, top / _SMOOTH - 3)
            pen.text(place, f'{score:.2f}', fill=ORANGE, font=font, anchor='lm')
    x = 12.0
    legend = (('ground truth', GREEN), ('detection', ORANGE), ('ego', WHITE), ('partner', SKY))
    for name, colour in legend:
        pen.rectangle((x, 13, x + 12, 23), outline=colour, width=2)
        pen.text((x + 18, 18), name, fill=WHITE, font=font, anchor='lm')
        x += 18 + pen.textlength(name, font=font) + 20


def _write_partners(
    canvas: Image.Image,
    to_pixels: _ToPixels,
    partners: Mapping[str, tuple[float, float, float]],
) -> None:
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LETTERS)
    for name, (x, y, _) in partners.items():
        column, row = to_pixels(np.array([[x, y]]))[0] / _SMOOTH
        pen.text((column, row + _LETTERS), name, fill=SKY, font=font, anchor='mt')


def _draw_labels(
    canvas: Image.Image, corners_px: NDArray[np.floating], labels: Sequence[str], colour: Colour
) -> None:
    """Each label on a plate above its box, kept inside the picture; hidden boxes have none."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(11, round(canvas.height / 36)))
    for corners, label in zip(corners_px, labels, strict=False):
        seen = corners[np.isfinite(corners).all(axis=1)]
        inside = (seen >= 0).all(axis=1) & (seen < (canvas.width, canvas.height)).all(axis=1)
        if not inside.any():
            continue
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        width, height = right - left + 8, bottom - top + 6
        x = float(np.clip(seen[:, 0].min(), 0, max(canvas.width - width, 0)))
        y = float(np.clip(seen[:, 1].min() - height - 3, 0, max(canvas.height - height, 0)))
        pen.rounded_rectangle((x, y, x + width, y + height), 3, fill=colour)
        pen.text((x + 4 - left, y + 3 - top), label, fill=_INK, font=font)


def _normalised(heat: NDArray[np.floating]) -> NDArray[np.float32]:
    """Heat from 0 to 1, all 0 when it does not differ."""
    finite = np.isfinite(heat)
    if not finite.any():
        return np.zeros(heat.shape, np.float32)
    low, high = heat[finite].min(), heat[finite].max()
    spread = float(high - low) or 1.0
    return np.where(finite, (heat - low) / spread, 0.0).astype(np.float32)


def _oklab_to_srgb(
    lightness: NDArray[np.floating],
    green_red: NDArray[np.floating],
    blue_yellow: NDArray[np.floating],
) -> NDArray[np.floating]:
    """OKLab (Ottosson 2020) to sRGB, 0 to 1, (N, 3); colours out of gamut are clipped."""
    lab = np.stack([lightness, green_red, blue_yellow], axis=-1)
    to_cones = np.array(
        [[1.0, 0.3963378, 0.2158038], [1.0, -0.1055613, -0.0638542], [1.0, -0.0894842, -1.2914855]]
    )
    to_linear = np.array(
        [
            [4.0767417, -3.3077116, 0.2309699],
            [-1.2684380, 2.6097574, -0.3413194],
            [-0.0041961, -0.7034186, 1.7076147],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0.0, 1.0)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, low, high)


def _to_picture(values: NDArray[np.floating]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _points(pixels: NDArray[np.floating]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in pixels]


def _check_picture(picture: Picture) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PictureError(
            f'picture is {picture.dtype} of shape {picture.shape}, expected uint8 of shape '
            f'(height, width, 3)'
        )


def _check_shape(name: str, values: NDArray[np.floating], tail: tuple[int, int]) -> None:
    if values.ndim != 3 or values.shape[1:] != tail:
        raise PictureError(f'{name} has shape {values.shape}, expected (N, {tail[0]}, {tail[1]})')


def _check_labels(labels: Sequence[object], boxes: int) -> None:
    if labels and len(labels) != boxes:
        raise PictureError(f'{len(labels)} labels for {boxes} boxes: give one each, or none')
