"""Detections of a live fleet: kept on disk, measured, and compared with those made offline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapdtr_ros.datasets.opv2v import Scenario, time_s
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import FusedFrame
from lapdtr_ros.perception.detection_targets import Grid, decode
from lapdtr_ros.perception.fusion import FusionSettings
from lapdtr_ros.perception.geometry import wrap_angle
from lapdtr_ros.perception.ground_truth import ground_truth

from .average_precision import ApResult, EvaluationProtocol, evaluate_frames
from .detected import SCORE_THRESHOLD, DetectedFrame, fused_boxes
from .run_record import MEASURED, AccuracyRecord, Equivalence, dump, encode

DETECTIONS_FORMAT = 'lapdtr_ros/detections'
VERSION = 1
TOLERANCE = 1e-4

_AXES = 'x forward, y right, z up, metres; yaw from x to y, radians'
_COLUMNS = ('x', 'y', 'z', 'length', 'width', 'height', 'yaw', 'score', 'stream')


class DetectionsError(LapdtrError):
    """A file of detections that cannot be read."""


def write_detections(frames: Iterable[FusedFrame], path: Path) -> None:
    """Write fused detections, oldest first, as JSON in CARLA axes."""
    document = {
        'format': DETECTIONS_FORMAT,
        'version': VERSION,
        'axes': _AXES,
        'columns': list(_COLUMNS),
        'frames': [_frame_to_json(f) for f in sorted(frames, key=lambda frame: frame.stamp_ns)],
    }
    path.write_text(dump(document), encoding='utf-8')


def read_detections(path: Path) -> list[FusedFrame]:
    """Read a file of `write_detections`.

    Raises:
        DetectionsError: no such file, or it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DetectionsError(f'{path}: {error.strerror}; give a detections.json') from None
    except json.JSONDecodeError as error:
        raise DetectionsError(f'{path}: not JSON ({error}); repeat the run') from None
    head = {'format': DETECTIONS_FORMAT, 'version': VERSION}
    if not isinstance(document, dict) or {key: document.get(key) for key in head} != head:
        raise DetectionsError(f'{path}: holds no detections of version {VERSION}; repeat the run')
    return [_frame_from_json(frame) for frame in document['frames']]


def _frame_to_json(frame: FusedFrame) -> dict[str, Any]:
    boxes = frame.boxes
    rows = np.column_stack([boxes.vectors, boxes.scores]).tolist()
    ids = boxes.ids.tolist()
    fields = {key: encode(value) for key, value in vars(frame).items() if key != 'boxes'}
    return {**fields, 'boxes': [[*row, one] for row, one in zip(rows, ids, strict=True)]}


def _frame_from_json(fields: dict[str, Any]) -> FusedFrame:
    rows = np.array(fields.pop('boxes'), dtype=np.float64).reshape(-1, len(_COLUMNS))
    boxes = Boxes.from_vectors(rows[:, :7], rows[:, 7], rows[:, 8].astype(np.int64))
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return FusedFrame(**{**fields, **lists}, boxes=boxes)


def stamp_ns(frame: DetectedFrame) -> int:
    """Time of a moment as sources stamp it, nanoseconds."""
    return round(time_s(frame.frame[frame.ego].timestamp) * 1e9)


def fused_offline(frames: Iterable[DetectedFrame], settings: FusionSettings) -> dict[int, Boxes]:
    """What all vehicles found together, by stamp, fused in this process."""
    return {stamp_ns(one): fused_boxes(one, one.frame, settings) for one in frames}


def live_precision(
    moments: Iterable[tuple[DetectedFrame, Boxes | None]], protocol: EvaluationProtocol
) -> ApResult:
    """AP of live detections.

    Args:
        moments: the annotated moment with what the fleet found, None where it said nothing; that
            counts as no boxes.
        protocol: how to measure.
    """
    rule = protocol.ground_truth_rule
    return evaluate_frames(
        (
            (Boxes.empty() if boxes is None else boxes, ground_truth(one.frame, one.ego, rule))
            for one, boxes in moments
        ),
        protocol,
    )


def decode_outputs(
    scene: Scenario,
    cameras: Mapping[str, tuple[int, int]],
    output: Callable[[str, int], np.ndarray | None],
    grid: Grid,
) -> list[DetectedFrame]:
    """Boxes in the outputs of a fleet that played a scene, one entry per moment.

    Args:
        scene: what was played.
        cameras: agent and camera number of each stream.
        output: the model's output, (1, 10, rows, columns), of a stream and the position of a
            moment; None when there is none.
        grid: cells of the output.
    """
    agents = [agent.id for agent in scene.agents]
    frames = []
    for position, timestamp in enumerate(scene.timestamps):
        frame = {agent: scene.frame(agent, timestamp) for agent in agents}
        found: dict[int, list[Boxes]] = {agent: [] for agent in agents}
        for stream, (agent, number) in cameras.items():
            camera = frame[agent].cameras[number].resized(grid.width, grid.height)
            values = output(stream, position)
            if values is not None:
                boxes = decode(values[0], camera, grid, score_threshold=SCORE_THRESHOLD)
                found[agent].append(boxes)
        frames.append(DetectedFrame(frame, {agent: tuple(one) for agent, one in found.items()}))
    return frames


def accuracy_record(result: ApResult, level: str = MEASURED) -> AccuracyRecord:
    """The figures of a run record from an AP at 0.3, 0.5 and 0.7."""
    return AccuracyRecord(
        ap30=result.ap30,
        ap50=result.ap50,
        ap70=result.ap70,
        frames=result.frames,
        ground_truths=result.ground_truths,
        detections=result.detections,
        protocol=json.loads(dump(encode(result.protocol.as_dict()))),
        level=level,
    )


@dataclass(frozen=True)
class Agreement:
    """How far live detections are from those made offline.

    Attributes:
        moments: moments compared.
        differing: those with another number of boxes, or a box that is farther off than tolerated.
        max_abs_diff: largest difference of any number of any box [m, rad or score]; infinite when
            numbers of boxes differ.
        live_boxes: boxes of the live fleet.
        offline_boxes: boxes made offline.
    """

    moments: int
    differing: int
    max_abs_diff: float
    live_boxes: int
    offline_boxes: int

    @property
    def holds(self) -> bool:
        """Whether something was compared and all of it agrees."""
        return self.moments > 0 and not self.differing

    def as_equivalence(self, reference: str) -> Equivalence:
        """For a run record; ``reference`` says what was compared with."""
        return Equivalence(self.moments, self.max_abs_diff, reference, TOLERANCE)


def compare_detections(
    live: Mapping[int, Boxes], offline: Mapping[int, Boxes], tolerance: float = TOLERANCE
) -> Agreement:
    """Compare boxes moment by moment; a moment without live boxes counts as one with none.

    Args:
        live: boxes by stamp.
        offline: boxes by stamp; these moments are compared.
        tolerance: difference that still counts as equal.
    """
    empty = Boxes.empty()
    differences = {
        stamp: boxes_difference(live.get(stamp, empty), boxes) for stamp, boxes in offline.items()
    }
    return Agreement(
        moments=len(offline),
        differing=sum(not difference <= tolerance for difference in differences.values()),
        max_abs_diff=max(differences.values(), default=0.0),
        live_boxes=sum(len(live.get(stamp, empty)) for stamp in offline),
        offline_boxes=sum(len(boxes) for boxes in offline.values()),
    )


def boxes_difference(first: Boxes, second: Boxes) -> float:
    """Largest difference of centres, sizes, yaws and scores, whatever the order of the boxes.

    Returns:
        Metres, radians or score; infinite when the boxes do not pair up.
    """
    if len(first) != len(second):
        return math.inf
    if not len(first):
        return 0.0
    ours, theirs = (np.column_stack([b.vectors, b.scores]) for b in (first, second))
    apart = np.abs(ours[:, None, :] - theirs[None, :, :])
    apart[..., 6] = np.abs(wrap_angle(ours[:, None, 6] - theirs[None, :, 6]))
    largest = apart.max(axis=-1)
    partners = largest.argmin(axis=1)
    if len(set(partners.tolist())) != len(first):
        return math.inf
    return float(largest[np.arange(len(first)), partners].max())
