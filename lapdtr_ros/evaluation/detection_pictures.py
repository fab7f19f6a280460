"""Detections beside the truth, in the camera's picture and from above, for reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lapdtr_ros.datasets.opv2v import read_image
from lapdtr_ros.models.preprocess import resize_picture
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes, Limits
from lapdtr_ros.perception.geometry import BOTTOM, project_to_image
from lapdtr_ros.perception.ground_truth import Camera, GroundTruthRule, ground_truth

from .detector import DetectedFrame
from .pictures import GREEN, ORANGE, Picture, bird_view, draw_boxes_3d, side_by_side
from .report import ReportImage

# A reader of a picture wants to see what the detector stands for, not all it can think of.
SHOWN_SCORE = 0.3

_FRONT_CAMERA = 0
_HEIGHT = 600  # of both views, pixels


def camera_picture(pixels: Picture, camera: Camera, truth: Boxes, found: Boxes) -> Picture:
    """Boxes drawn into a camera's picture, the truth in green and what was found in orange.

    Args:
        pixels: (H, W, 3) uint8.
        camera: with the intrinsic of that picture.
        truth: boxes in the frame of the vehicle's LiDAR.
        found: boxes in the same frame, with scores.
    """
    truth, found = (_in_picture(boxes, camera, pixels) for boxes in (truth, found))
    drawn = draw_boxes_3d(pixels, _corner_pixels(truth, camera), colour=GREEN)
    scores = [f'{score:.2f}' for score in found.scores]
    return draw_boxes_3d(drawn, _corner_pixels(found, camera), scores, ORANGE)


def _corner_pixels(boxes: Boxes, camera: Camera) -> np.ndarray:
    return project_to_image(boxes.corners(), camera.extrinsic, camera.intrinsic)[0]


def _in_picture(boxes: Boxes, camera: Camera, pixels: Picture) -> Boxes:
    """Boxes of which the centre lies in the picture."""
    centers, _ = project_to_image(boxes.centers, camera.extrinsic, camera.intrinsic)
    height, width = pixels.shape[:2]
    # Centres behind the camera are NaN, which compares false.
    return boxes[((centers >= 0.0) & (centers < (width, height))).all(axis=1)]


def view_from_above(truth: Boxes, found: Boxes, limits: Limits = CAMERA_RANGE) -> Picture:
    """Boxes around the ego, which looks to the right; in the frame of its LiDAR."""
    (left, right), (low, high) = limits.x, limits.y
    return bird_view(
        truth.corners()[:, BOTTOM, :2],
        found.corners()[:, BOTTOM, :2],
        (left, low, right, high),
        found.scores.tolist(),
        y_axis='right',
        width=_HEIGHT,
    )


def detection_images(
    frames: Sequence[DetectedFrame],
    found: Sequence[Boxes],
    rule: GroundTruthRule,
    count: int = 3,
) -> list[ReportImage]:
    """The ego's front camera and the view from above, of a few moments spread over all.

    Args:
        frames: moments.
        found: detections of each moment in the ego LiDAR's frame.
        rule: which labels are shown as truth.
        count: most moments to show.
    """
    images = []
    for index in range(0, len(frames), max(1, -(-len(frames) // count))):
        frame = frames[index]
        truth = ground_truth(frame.frame, frame.ego, rule)
        shown = found[index][found[index].scores >= SHOWN_SCORE]
        parts = [view_from_above(truth, shown, rule.limits or CAMERA_RANGE)]
        view = frame.frame[frame.ego]
        if _FRONT_CAMERA in view.image_paths:
            pixels = read_image(view.image_paths[_FRONT_CAMERA])
            width = round(pixels.shape[1] * _HEIGHT / pixels.shape[0])
            # Enlarged before drawing, so that lines and numbers stay sharp.
            pixels = resize_picture(pixels, (_HEIGHT, width))
            camera = view.cameras[_FRONT_CAMERA].resized(width, _HEIGHT)
            parts.insert(0, camera_picture(pixels, camera, truth, shown))
        images.append(
            ReportImage(
                f'Moment {view.timestamp}',
                side_by_side(parts),
                f'Green: {len(truth)} labelled vehicles; orange: {len(shown)} found by all cameras '
                f'with a score of at least {SHOWN_SCORE:g}',
            )
        )
    return images
