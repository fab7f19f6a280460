"""Names of topics; all nodes of a fleet share one namespace and meet here."""

from __future__ import annotations

DIAGNOSTICS = '/diagnostics'


def _join(fleet: str, *parts: str) -> str:
    return '/' + '/'.join(part for part in (fleet.strip('/'), *parts) if part)


def plan(fleet: str) -> str:
    """Fleet plans, from the planner to everybody."""
    return _join(fleet, 'plan')


def frame_traces(fleet: str) -> str:
    """Finished, lost and refused frames, from every source to sinks."""
    return _join(fleet, 'frame_traces')


def stream_status(fleet: str) -> str:
    """How far each stream has come, from every source to the devices."""
    return _join(fleet, 'stream_status')


def active_plan(fleet: str) -> str:
    """The plan that each source uses now, for a planner that comes back."""
    return _join(fleet, 'active_plan')


def resume_requests(fleet: str) -> str:
    """Questions and decisions about frames after a loss, from every source to the devices."""
    return _join(fleet, 'resume_requests')


def cache_reports(fleet: str) -> str:
    """What devices hold of frames after a loss, from every device to the sources."""
    return _join(fleet, 'cache_reports')


def features(fleet: str, device: str) -> str:
    """Inputs of a device's stages, from sources and other devices."""
    return _join(fleet, device, 'features')


def telemetry(fleet: str, device: str) -> str:
    """State of a device."""
    return _join(fleet, device, 'telemetry')


def result(fleet: str, stream: str) -> str:
    """Outputs of a stream's last unit, to its source and its sink."""
    return _join(fleet, stream, 'result')


def camera_info(fleet: str, stream: str) -> str:
    """Intrinsics of a stream's camera, one message per picture."""
    return _join(fleet, stream, 'camera_info')


def mount(fleet: str, stream: str) -> str:
    """Where a stream's camera sits relative to its vehicle's LiDAR, one message per picture."""
    return _join(fleet, stream, 'mount')


def image(fleet: str, stream: str) -> str:
    """Pictures of a stream's camera; compressed ones have ``/compressed`` behind it."""
    return _join(fleet, stream, 'image')


def odometry(fleet: str, vehicle: str) -> str:
    """Pose of a vehicle in the map and its speed."""
    return _join(fleet, vehicle, 'odometry')


def battery_state(fleet: str, vehicle: str) -> str:
    """State of a vehicle's battery."""
    return _join(fleet, vehicle, 'battery_state')


def objects(fleet: str, vehicle: str) -> str:
    """What surrounds a vehicle, as ground truth."""
    return _join(fleet, vehicle, 'objects')


def lidar_pose(fleet: str, vehicle: str) -> str:
    """Pose of a vehicle's LiDAR in the map, from every camera of the vehicle."""
    return _join(fleet, vehicle, 'lidar_pose')


def detections(fleet: str) -> str:
    """Fused detections in the ego's LiDAR frame."""
    return _join(fleet, 'detections')


def detection_markers(fleet: str) -> str:
    """Fused detections for RViz."""
    return _join(fleet, 'detection_markers')


def vision_detections(fleet: str) -> str:
    """Fused detections as vision_msgs/Detection3DArray."""
    return _join(fleet, 'vision_detections')


def namespace(fleet: str, owner: str = '') -> str:
    """Namespace of a node that belongs to a device or stream."""
    return _join(fleet, owner)
