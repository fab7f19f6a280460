"""A running fleet in the rerun viewer: cameras, detections, who runs what, energy and latency.

rerun is an optional extra (``pip install lapdtr_ros[view]``) and works without a network: the
viewer is a page that this process serves, or a file to open later.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.execution.frames import FINISHED, FrameOutcome
from lapdtr_ros.perception.cooperation import FusedFrame
from lapdtr_ros.planning.plan import FleetPlan

from .overview import DeviceState
from .run_record import describe_units

VIEW_PORT = 9090

_JPEG_QUALITY = 70
_RING = 100.0  # radius on which devices of the graph stand
_BUSY, _IDLE = (240, 150, 40), (120, 130, 140)
_BOX = (60, 200, 90)


class LiveViewError(LapdtrError):
    """The viewer cannot be shown."""


def page_address(web_port: int, grpc_port: int) -> str:
    """Where a view that serves these ports is seen, in a browser on the same machine."""
    source = f'rerun+http://127.0.0.1:{grpc_port}/proxy'
    return f'http://127.0.0.1:{web_port}/?url={quote(source, safe="")}'


class LiveView:
    """Sends what a fleet says to rerun.

    Args:
        save: file to write instead of serving a page.
        web_port: port of the page.
        grpc_port: port of the data behind the page.

    Raises:
        LiveViewError: rerun is not installed, or a port is taken.
    """

    def __init__(
        self, *, save: Path | None = None, web_port: int = VIEW_PORT, grpc_port: int = VIEW_PORT + 1
    ) -> None:
        self._rr = _import_rerun()
        self._recording = self._rr.RecordingStream('lapdtr_ros')
        self._links: dict[str, list[tuple[str, str]]] = {}
        self._devices: dict[str, str] = {}
        self._cameras: set[str] = set()
        self.address = str(save or self._serve(web_port, grpc_port))
        if save is not None:
            save.parent.mkdir(parents=True, exist_ok=True)
            self._recording.save(save, default_blueprint=self._blueprint())

    def close(self) -> None:
        """Finish what is under way."""
        self._recording.disconnect()

    def add_plan(self, plan: FleetPlan, cause: str, now_s: float) -> None:
        """Show who runs what, and why."""
        self._at(now_s)
        self._log('decisions', self._rr.TextLog(f'plan {plan.epoch} ({cause}): {plan.reason}'))
        self._links = {name: _hops(plan, name) for name in plan.streams}
        units: dict[str, list[str]] = {}
        for decision in plan.streams.values():
            for stage in decision.plan.stages:
                units.setdefault(stage.device, []).append(describe_units(stage.start, stage.stop))
        self._devices = {name: ', '.join(units.get(name, [])) for name in self._devices} | {
            name: ', '.join(parts) for name, parts in units.items()
        }
        self._draw_graph()

    def add_device(self, state: DeviceState, now_s: float) -> None:
        """Add a device's battery, power and load to the curves."""
        self._at(now_s)
        if state.name not in self._devices:
            self._devices[state.name] = ''
            self._draw_graph()
        figures = {'load': state.load, 'power': state.power_w}
        if not state.on_mains:
            figures['battery'] = state.soc
        for key, value in figures.items():
            if math.isfinite(value):
                self._log(f'{key}/{state.name}', self._rr.Scalars(value))

    def add_outcome(self, outcome: FrameOutcome, now_s: float) -> None:
        """Add a frame's latency and energy to the curves."""
        self._at(now_s)
        if outcome.outcome != FINISHED:
            text = f'{outcome.stream} frame {outcome.seq} {outcome.outcome}'
            self._log('decisions', self._rr.TextLog(text, level='WARN'))
            return
        self._log(f'latency/{outcome.stream}', self._rr.Scalars(outcome.latency_s))
        energy_j = sum(record.energy_j for record in outcome.trace)
        if math.isfinite(energy_j):
            self._log(f'energy/{outcome.stream}', self._rr.Scalars(energy_j))

    def add_picture(self, stream: str, pixels: np.ndarray, now_s: float) -> None:
        """Show a camera picture, uint8 RGB."""
        if stream not in self._cameras:
            self._cameras.add(stream)
            self._recording.send_blueprint(self._blueprint())
        self._at(now_s)
        image = self._rr.Image(pixels).compress(jpeg_quality=_JPEG_QUALITY)
        self._log(f'cameras/{stream}', image)

    def add_fused(self, frame: FusedFrame, now_s: float) -> None:
        """Show the detections of a moment around the ego; y is turned to the left."""
        self._at(now_s)
        vectors = frame.boxes.vectors * (1, -1, 1, 1, 1, 1, -1)
        up = np.array([0.0, 0.0, 1.0])
        turns = [self._rr.RotationAxisAngle(axis=up, radians=yaw) for yaw in vectors[:, 6]]
        boxes = self._rr.Boxes3D(
            centers=vectors[:, :3],
            sizes=vectors[:, 3:6],
            rotation_axis_angles=turns,
            colors=[_BOX],
            labels=[f'{score:.2f}' for score in frame.boxes.scores],
        )
        self._log('scene/detections', boxes)

    def _serve(self, web_port: int, grpc_port: int) -> str:
        try:
            source = self._recording.serve_grpc(
                grpc_port=grpc_port, default_blueprint=self._blueprint()
            )
            self._rr.serve_web_viewer(web_port=web_port, open_browser=False, connect_to=source)
        except (OSError, RuntimeError, ValueError) as error:
            raise LiveViewError(
                f'the viewer cannot be served on ports {web_port} and {grpc_port}: {error}; '
                f'choose others'
            ) from error
        return page_address(web_port, grpc_port)

    def _blueprint(self) -> Any:
        import rerun.blueprint as rrb

        cameras = [
            rrb.Spatial2DView(origin=f'cameras/{stream}', name=stream)
            for stream in sorted(self._cameras)
        ] or [rrb.Spatial2DView(origin='cameras', name='Cameras')]
        curves = [
            rrb.TimeSeriesView(origin=origin, name=name)
            for origin, name in (
                ('latency', 'Latency [s]'),
                ('energy', 'Energy per frame [J]'),
                ('battery', 'Battery'),
                ('load', 'Load'),
            )
        ]
        return rrb.Blueprint(
            rrb.Horizontal(
                rrb.Vertical(
                    rrb.Grid(*cameras, name='Cameras'),
                    rrb.Spatial3DView(origin='scene', name='Detections around the ego'),
                ),
                rrb.Vertical(
                    rrb.GraphView(origin='fleet', name='Who runs which units'),
                    rrb.TextLogView(origin='decisions', name='Decisions'),
                ),
                rrb.Vertical(*curves),
                column_shares=[3, 2, 2],
            ),
            rrb.TimePanel(state='collapsed', play_state='following'),
            collapse_panels=True,
        )

    def _draw_graph(self) -> None:
        names = sorted(self._devices)
        angles = np.linspace(0.0, 2.0 * np.pi, len(names), endpoint=False)
        # Fixed places: an automatic layout would move devices whenever the plan changes.
        places = _RING * np.column_stack([np.cos(angles), np.sin(angles)])
        labels = [f'{name}\n{self._devices[name] or "idle"}' for name in names]
        colours = [_BUSY if self._devices[name] else _IDLE for name in names]
        edges = [edge for hops in self._links.values() for edge in hops]
        nodes = self._rr.GraphNodes(names, positions=places, labels=labels, colors=colours)
        self._log('fleet', nodes, self._rr.GraphEdges(edges, graph_type='directed'))

    def _at(self, now_s: float) -> None:
        self._recording.set_time('time', duration=now_s)

    def _log(self, path: str, *what: Any) -> None:
        self._recording.log(path, *what)


def _hops(plan: FleetPlan, stream: str) -> list[tuple[str, str]]:
    """Devices between which a frame of a stream travels."""
    content = plan.streams[stream].plan
    way = [content.source, *plan.devices(stream), content.sink]
    return [(a, b) for a, b in itertools.pairwise(way) if a != b]


def _import_rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise LiveViewError(
            f'the live view needs rerun ({error}): pip install lapdtr_ros[view]'
        ) from None
    return rerun
