"""Cooperative fusion: the aggregation G of Algorithm 3, line 12.

Every camera stream of every vehicle delivers detections in its vehicle's LiDAR frame. `fuse` moves
them into the ego's and merges what overlaps. `FusionWindow` gathers the contributions of one moment
until all are there or a deadline passes; the ROS node is thin over both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar, get_args

import numpy as np

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from . import geometry
from .boxes import Boxes, ScoreRule, rotated_nms, weighted_box_fusion
from .ground_truth import COMMUNICATION_RANGE_M

FusionMethod = Literal['nms', 'wbf']
NMS: FusionMethod = 'nms'
WBF: FusionMethod = 'wbf'
SCORE_RULES: tuple[ScoreRule, ...] = get_args(ScoreRule)

# Boxes from several views disagree more than those from one, hence the larger groups of WBF.
IOU_THRESHOLDS: Mapping[FusionMethod, float] = {NMS: 0.15, WBF: 0.3}


class FusionError(LapdtrError):
    """Fusion settings that make no sense."""


@dataclass(frozen=True)
class AgentDetections:
    """What one vehicle, or one of its cameras, found at one moment.

    Attributes:
        agent: name of the vehicle.
        stamp: time of the picture, seconds.
        lidar_pose: pose of the vehicle's LiDAR at that time, `(x, y, z, roll, yaw, pitch)`.
        boxes: detections in the frame of that LiDAR.
    """

    agent: str
    stamp: float
    lidar_pose: Sequence[float]
    boxes: Boxes


@dataclass(frozen=True)
class PoseNoise:
    """Error of the poses that *other* vehicles report: Gaussian on x, y, z and yaw.

    Attributes:
        position_std_m: standard deviation of each of x, y and z, metres.
        yaw_std_deg: standard deviation of the yaw, degrees.
        seed: the noise of an agent at a stamp depends on nothing but these and the seed, so all
            cameras of a vehicle share one error and a run can be repeated in any order.
    """

    position_std_m: float = 0.0
    yaw_std_deg: float = 0.0
    seed: int = 0

    def apply(self, agent: str, stamp: float, pose: Sequence[float]) -> tuple[float, ...]:
        """The pose as a noisy localiser would report it."""
        if self.position_std_m == 0.0 and self.yaw_std_deg == 0.0:
            return tuple(pose)
        entropy = [self.seed, round(stamp * 1e6) & (2**63 - 1), *agent.encode()]
        error = np.random.default_rng(entropy).normal(size=4)
        x, y, z, roll, yaw, pitch = pose
        dx, dy, dz = error[:3] * self.position_std_m
        return x + dx, y + dy, z + dz, roll, yaw + error[3] * self.yaw_std_deg, pitch


@dataclass(frozen=True)
class FusionSettings:
    """How detections are merged.

    Attributes:
        method: `NMS` keeps the best of overlapping boxes, `WBF` averages them.
        iou_threshold: BEV IoU above which two boxes show the same vehicle; None takes the
            method's own of `IOU_THRESHOLDS`.
        score_threshold: detections must score above this.
        score_rule: score of a merged box, see `weighted_box_fusion`; `NMS` does not merge.
        limit: only this many best detections take part.
        communication_range_m: planar distance of LiDAR poses up to which agents are heard.
        noise: error put on the poses of all agents but the ego.
    """

    method: FusionMethod = WBF
    iou_threshold: float | None = None
    score_threshold: float = 0.0
    score_rule: ScoreRule = 'noisy_or'
    limit: int = 1000
    communication_range_m: float = COMMUNICATION_RANGE_M
    noise: PoseNoise = field(default_factory=PoseNoise)

    def __post_init__(self) -> None:
        if self.method not in (NMS, WBF):
            raise UnknownNameError('fusion method', self.method, (NMS, WBF))
        if self.score_rule not in SCORE_RULES:
            raise UnknownNameError('score rule', self.score_rule, SCORE_RULES)
        if not 0.0 <= self.overlap < 1.0:
            raise FusionError(f'iou_threshold is {self.iou_threshold}, expected 0 to < 1')
        if self.limit < 1:
            raise FusionError(f'limit is {self.limit}, expected at least 1')

    @property
    def overlap(self) -> float:
        """The `iou_threshold` in force."""
        return IOU_THRESHOLDS[self.method] if self.iou_threshold is None else self.iou_threshold

    @property
    def name(self) -> str:
        """For reports: ``nms`` or, with the score rule, e.g. ``wbf_noisy_or``."""
        return self.method if self.method == NMS else f'{self.method}_{self.score_rule}'

    def merge(self, boxes: Boxes) -> Boxes:
        """Merge duplicates among boxes of one frame by the chosen method."""
        boxes = boxes[boxes.scores > self.score_threshold]
        if self.method == NMS:
            return rotated_nms(boxes, self.overlap, self.limit)
        return weighted_box_fusion(boxes, self.overlap, self.score_rule, self.limit)


def fuse(
    detections: Sequence[AgentDetections],
    ego: str,
    ego_pose: Sequence[float],
    settings: FusionSettings | None = None,
) -> Boxes:
    """Merge the detections of several cameras and vehicles into one list.

    Args:
        detections: contributions in any number and order; an agent may appear once per camera.
        ego: name of the vehicle whose view is built; it need not contribute.
        ego_pose: pose of the ego's LiDAR at the moment the result is for.
        settings: how to merge.

    Returns:
        Boxes in the ego LiDAR's frame by descending score; `ids` holds the position in
        `detections` of the contribution a box (or the leader of its group) came from.
    """
    settings = settings or FusionSettings()
    moved = []
    for position, contribution in enumerate(detections):
        pose = contribution.lidar_pose
        if contribution.agent != ego:
            if geometry.planar_distance(pose, ego_pose) > settings.communication_range_m:
                continue
            pose = settings.noise.apply(contribution.agent, contribution.stamp, pose)
        boxes = contribution.boxes.transformed(geometry.relative_transform(pose, ego_pose))
        moved.append(replace(boxes, ids=np.full(len(boxes), position)))
    return settings.merge(Boxes.concatenate(moved))


def with_delay(
    history: Sequence[Mapping[str, AgentDetections]], index: int, ego: str, delay_frames: int
) -> list[AgentDetections]:
    """What the ego has in hand at frame `index` when other vehicles' messages arrive late.

    Args:
        history: detections of every frame by contributor, oldest first.
        index: the present frame.
        ego: name of the ego, whose own detections are never late.
        delay_frames: age of the others' detections and poses in frames (OPV2V: 0.1 s each). Before
            that many frames have passed, the first frame stands in, as in OpenCOOD.
    """
    if delay_frames < 0:
        raise FusionError(f'delay_frames is {delay_frames}, expected at least 0')
    own = [item for item in history[index].values() if item.agent == ego]
    late = history[max(0, index - delay_frames)].values()
    return own + [item for item in late if item.agent != ego]


# --- Gathering ------------------------------------------------------------------------------------

T = TypeVar('T')


@dataclass(frozen=True)
class CollectedFrame(Generic[T]):
    """The contributions to one frame.

    Attributes:
        key: the frame.
        contributions: what arrived in time, by contributor.
        missing: contributors that were expected and did not deliver.
        age_s: time from the first contribution to delivery, seconds.
    """

    key: int
    contributions: Mapping[str, T]
    missing: frozenset[str]
    age_s: float


@dataclass
class WindowCounters:
    """What became of the contributions and frames of a `FusionWindow`."""

    complete: int = 0
    partial: int = 0
    late: int = 0
    duplicate: int = 0
    unexpected: int = 0
    overflowed: int = 0


@dataclass
class _PendingFrame(Generic[T]):
    opened: float
    contributions: dict[str, T] = field(default_factory=dict)


class FusionWindow(Generic[T]):
    """Gathers the contributions of each frame until all are there or the deadline passes.

    Time is whatever monotonic clock the caller passes in as `now`. Memory is bounded: at most
    `capacity` frames are open, the oldest gives way (`counters.overflowed`), and at most as many
    delivered keys are remembered; a contribution to a frame older than those counts as late.

    Args:
        expected: names of the contributors, e.g. the camera streams of the fleet.
        deadline_s: how long a frame waits after its first contribution, seconds.
        capacity: most frames that are open at once.
    """

    def __init__(self, expected: Collection[str], deadline_s: float, capacity: int = 32) -> None:
        if not (math.isfinite(deadline_s) and deadline_s >= 0.0):
            raise FusionError(f'deadline_s is {deadline_s}, expected a finite time of at least 0')
        if capacity < 1:
            raise FusionError(f'capacity is {capacity}, expected at least 1')
        self._expected = frozenset(expected)
        self._deadline_s = deadline_s
        self._capacity = capacity
        self._pending: dict[int, _PendingFrame[T]] = {}
        self._closed: dict[int, None] = {}  # an ordered set: oldest delivery first
        self._forgotten = -math.inf
        self.counters = WindowCounters()

    def __len__(self) -> int:
        """Number of open frames."""
        return len(self._pending)

    @property
    def expected(self) -> frozenset[str]:
        """Contributors that make a frame complete."""
        return self._expected

    @expected.setter
    def expected(self, contributors: Collection[str]) -> None:
        self._expected = frozenset(contributors)

    def add(self, contributor: str, key: int, contribution: T, now: float) -> bool:
        """Take one contribution to a frame.

        Args:
            contributor: name of the stream or vehicle it comes from.
            key: the frame; keys grow with time.
            contribution: anything; kept as it is. The first one of a contributor counts.
            now: present time, seconds.

        Returns:
            Whether it was taken; if not, a counter says why.
        """
        if contributor not in self._expected:
            self.counters.unexpected += 1
            return False
        frame = self._pending.get(key)
        if frame is None:
            if key in self._closed or key <= self._forgotten:
                self.counters.late += 1
                return False
            frame = self._open(key, now)
        if contributor in frame.contributions:
            self.counters.duplicate += 1
            return False
        frame.contributions[contributor] = contribution
        return True

    def due(self, now: float) -> list[CollectedFrame[T]]:
        """Deliver, oldest first, the frames that are complete or past their deadline."""
        ready = []
        for key in sorted(self._pending):
            frame = self._pending[key]
            missing = self._expected - frame.contributions.keys()
            age = now - frame.opened
            if not missing or age >= self._deadline_s:
                self._close(key)
                ready.append(CollectedFrame(key, frame.contributions, missing, age))
                if missing:
                    self.counters.partial += 1
                else:
                    self.counters.complete += 1
        return ready

    def reset(self) -> None:
        """Forget all frames, e.g. when a replayed recording starts again; counters go on."""
        self._pending.clear()
        self._closed.clear()
        self._forgotten = -math.inf

    def _open(self, key: int, now: float) -> _PendingFrame[T]:
        if len(self._pending) >= self._capacity:
            self._close(min(self._pending))
            self.counters.overflowed += 1
        frame = self._pending[key] = _PendingFrame(now)
        return frame

    def _close(self, key: int) -> None:
        del self._pending[key]
        self._closed[key] = None
        if len(self._closed) > self._capacity:
            oldest = next(iter(self._closed))
            del self._closed[oldest]
            self._forgotten = max(self._forgotten, oldest)
