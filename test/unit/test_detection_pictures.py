"""Pictures of detections: the right boxes at the right places, in the right colours."""

import numpy as np

from lapdtr_ros.evaluation.detection_pictures import (
    camera_picture,
    detection_images,
    view_from_above,
)
from lapdtr_ros.evaluation.detector import DetectedFrame
from lapdtr_ros.evaluation.pictures import GREEN, ORANGE
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.cooperation import PinholeCamera
from lapdtr_ros.perception.ground_truth import GroundTruthRule
from lapdtr_ros.perception.poses import camera_intrinsic
from test_evaluate import view

GREY = np.full((90, 120, 3), 128, np.uint8)
EXTRINSIC = np.eye(4)
CAMERA = PinholeCamera(camera_intrinsic(120, 90, 100.0), EXTRINSIC)
AHEAD_RIGHT = Boxes.from_vectors([(12.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0)], [0.8])
BEHIND = Boxes.from_vectors([(-12.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0)], [0.8])
