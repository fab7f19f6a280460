"""Detections beside the truth, in the camera's picture and from above, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lapdtr_ros.datasets.opv2v import read_image
from lapdtr_ros.models.preprocess import resize_picture
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes, Limits
from lapdtr_ros.perception.geometry import BOTTOM, project_to_image, relative_transform
from lapdtr_ros.perception.ground_truth import Camera, GroundTruthRule, ground_truth

from .detected import DetectedFrame
from .pictures import (
    GREEN,
    ORANGE,
    Picture,
    bird_view,
    draw_boxes_3d,
    in_rows,
    overlay_heat,
    titled,
)
from .report import ReportImage

# A reader of a picture wants to see what the detector stands for, not all it can think of.
SHOWN_SCORE = 0.3

_FRONT_CAMERA = 0
_SIZE = (480, 640)  # of each view, pixels
_MOST_CAMERAS = 3  # with the view from above they make two rows


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
    return draw_boxes_3d(drawn, _corner_pixels(found, camera), colour=ORANGE)


def _corner_pixels(boxes: Boxes, camera: Camera) -> np.ndarray:
    return project_to_image(boxes.corners(), camera.extrinsic, camera.intrinsic)[0]


def _in_picture(boxes: Boxes, camera: Camera, pixels: Picture) -> Boxes:
    """Boxes of which the centre lies in the picture."""
    centers, _ = project_to_image(boxes.centers, camera.extrinsic, camera.intrinsic)
    height, width = pixels.shape[:2]
    # Centres behind the camera are NaN, which compares false.
    return boxes[((centers >= 0.0) & (centers < (width, height))).all(axis=1)]


def view_from_above(
    truth: Boxes,
    found: Boxes,
    limits: Limits = CAMERA_RANGE,
    partners: Mapping[str, tuple[float, float, float]] | None = None,
) -> Picture:
    """Boxes around the ego, which looks to the right; in the frame of its LiDAR.

    Args:
        truth: labelled vehicles.
        found: detections.
        limits: what x to show; y follows from the shape of the picture.
        partners: see `bird_view`.
    """
    left, right = limits.x
    height, width = _SIZE
    aside = (right - left) / 2 * height / width
    return bird_view(
        truth.corners()[:, BOTTOM, :2],
        found.corners()[:, BOTTOM, :2],
        (left, -aside, right, aside),
        found.scores.tolist(),
        y_axis='right',
        width=width,
        partners=partners,
    )


def _camera_view(frame: DetectedFrame, agent: int, truth: Boxes, found: Boxes) -> Picture | None:
    """The front camera of an agent with boxes of the ego's frame, None without a picture."""
    view = frame.frame[agent]
    if _FRONT_CAMERA not in view.image_paths:
        return None
    height, width = _SIZE
    # Enlarged before drawing, so that lines and numbers stay sharp.
    pixels = resize_picture(read_image(view.image_paths[_FRONT_CAMERA]), _SIZE)
    camera = view.cameras[_FRONT_CAMERA].resized(width, height)
    to_agent = relative_transform(frame.frame[frame.ego].lidar_pose, view.lidar_pose)
    drawn = camera_picture(pixels, camera, truth.transformed(to_agent), found.transformed(to_agent))
    return titled(drawn, f'{"ego" if agent == frame.ego else "partner"} {agent}')


def _partners(frame: DetectedFrame) -> dict[str, tuple[float, float, float]]:
    """Place and heading of all agents but the ego in the frame of its LiDAR."""
    ego_pose = frame.frame[frame.ego].lidar_pose
    places = {}
    for agent, view in frame.frame.items():
        if agent != frame.ego:
            moved = relative_transform(view.lidar_pose, ego_pose)
            x, y = moved[:2, 3]
            places[str(agent)] = float(x), float(y), float(np.arctan2(moved[1, 0], moved[0, 0]))
    return places


def detection_images(
    frames: Sequence[DetectedFrame],
    found: Sequence[Boxes],
    rule: GroundTruthRule,
    count: int = 3,
) -> list[ReportImage]:
    """Front cameras of some vehicles and the view from above, of a few moments spread over all.

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
        cameras = (_camera_view(frame, agent, truth, shown) for agent in frame.frame)
        seen = [picture for picture in cameras if picture is not None][:_MOST_CAMERAS]
        above = view_from_above(truth, shown, rule.limits or CAMERA_RANGE, _partners(frame))
        images.append(
            ReportImage(
                f'Moment {frame.frame[frame.ego].timestamp}',
                in_rows([*seen, above], columns=2),
                f'Green: {len(truth)} labelled vehicles; orange: {len(shown)} found by all cameras '
                f'with a score of at least {SHOWN_SCORE:g}',
            )
        )
    return images


def heat_image(frame: DetectedFrame, heats: Mapping[int, np.ndarray]) -> ReportImage:
    """Where the detector sees centres of vehicles, before boxes are made of them.

    Args:
        frame: the moment.
        heats: agent id to the heat over its front camera's picture, (rows, columns).
    """
    pictures = [
        titled(
            overlay_heat(
                resize_picture(read_image(frame.frame[agent].image_paths[_FRONT_CAMERA]), _SIZE),
                heat,
            ),
            f'{"ego" if agent == frame.ego else "partner"} {agent}',
        )
        for agent, heat in heats.items()
    ]
    return ReportImage(
        f'Moment {frame.frame[frame.ego].timestamp}: what the network gave',
        in_rows(pictures, columns=2),
        'Saliency: how likely the centre of a vehicle lies there, from the outputs of the fleet; '
        'bright is likely',
    )
