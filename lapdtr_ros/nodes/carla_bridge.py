"""Connects a CARLA server with a fleet: cameras, poses, ground truth, batteries, the clock."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rosgraph_msgs.msg import Clock

from lapdtr_ros import conversions, qos
from lapdtr_ros.cosimulation.config import CosimulationError, VehicleSection, load_config
from lapdtr_ros.cosimulation.simulation import ClientFactory, Moment, Observation, Simulation
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame, write_data_protocol
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS
from lapdtr_ros.energy.battery import Battery

from .base import ERROR, OK, WARN, Diagnosis, ManagedNode, declare, parameter, run_node
from .handback import Handback
from .observations import VehiclePublisher

_JOULES_PER_KWH = 3.6e6
_WH_PER_KM_TO_J_PER_M = 3.6


@dataclass(frozen=True)
class CarlaBridgeParameters:
    """Parameters of the CARLA bridge."""

    cosimulation: str = parameter('', 'YAML of the co-simulation, ours or a scenario of OpenCDA')
    host: str = parameter('', 'Host of the server; empty: as the YAML says')
    port: int = parameter(0, 'Port of the server; 0: as the YAML says', minimum=0, maximum=65535)
    ticks: int = parameter(0, 'End after so many ticks; 0: run until stopped', minimum=0)
    real_time_factor: float = parameter(
        1.0, 'Fastest pace; 0: as fast as the server can', minimum=0.0, maximum=100.0
    )
    dump: str = parameter('', 'Directory for an OPV2V copy of everything; empty: none')


class CarlaBridgeNode(ManagedNode):
    """The one client that ticks a CARLA server, with connected vehicles of its own.

    A thread of its own ticks and publishes; pictures and all that belongs to them carry the same
    stamp, the simulation time. When the server goes, the node says so in the log and in
    ``/diagnostics`` and ends with an error.

    Args:
        client: makes the client; the genuine one when None.

    Parameters:
        See `CarlaBridgeParameters` and `CommonParameters` (``scenario`` is not used).

    Publishers:
        /clock (rosgraph_msgs/Clock): every tick.
        the topics of every vehicle, see `VehiclePublisher`.
    """

    def __init__(self, client: ClientFactory | None = None) -> None:
        super().__init__('carla_bridge')
        self.parameters = declare(self, CarlaBridgeParameters)
        self._client = client
        self._simulation: Simulation | None = None
        self._stopping = threading.Event()
        self._thread: Handback | None = None
        self._vehicles: dict[str, VehiclePublisher] = {}
        self._batteries: dict[str, Battery] = {}
        self._ticks = self._moments = 0
        self._problem = ''

    def configure(self) -> None:
        """Read the YAML and spawn the vehicles."""
        given = {key: value for key in ('host', 'port') if (value := getattr(self.parameters, key))}
        if not self.parameters.cosimulation:
            raise CosimulationError('parameter cosimulation is empty: give the path of a YAML')
        config = load_config(Path(self.parameters.cosimulation).expanduser())
        self._config = config.model_copy(update=given)
        self._simulation = Simulation(self._config, self._client)
        self._time = self.create_publisher(Clock, '/clock', qos.clock())
        fleet = self.common.fleet
        for name, section in self._config.vehicles.items():
            cameras = range(len(CAMERA_MOUNTS))
            self._vehicles[name] = VehiclePublisher(self, fleet, name, cameras)
            self._batteries[name] = Battery(section.battery_kwh * _JOULES_PER_KWH, section.soc)
        if self.parameters.dump:
            ids = dict(self._simulation.actor_ids)
            protocol = {'vehicles': ids, 'world': {'seed': self._config.seed}}
            write_data_protocol(Path(self.parameters.dump).expanduser(), protocol)

    def activate(self) -> None:
        """Start ticking."""
        self._stopping.clear()
        self._problem = ''
        self._thread = Handback(self, 'simulation')
        self._thread.submit(self._run, self._on_end)

    def deactivate(self) -> None:
        """Stop ticking; the server waits."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.close()
        self._thread = None

    def cleanup(self) -> None:
        """Destroy the vehicles and give the server back as it was."""
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = None

    def diagnose(self) -> list[Diagnosis]:
        """Whether the server answers."""
        values = {'ticks': str(self._ticks), 'moments': str(self._moments)}
        if self._problem:
            return [Diagnosis('carla', ERROR, self._problem, values)]
        if not self._ticks:
            return [Diagnosis('carla', WARN, 'no tick yet', values)]
        return [Diagnosis('carla', OK, f'{len(self._vehicles)} vehicles', values)]

    def _run(self) -> None:
        assert self._simulation is not None
        began_s, before_s = time.monotonic(), -math.inf
        while not self._stopping.is_set() and self._may_tick():
            moment = self._simulation.tick()
            self._ticks += 1
            self._publish(moment)
            if before_s > -math.inf and self.parameters.real_time_factor:
                simulated_s = self._ticks * self._config.step_s
                due_s = began_s + simulated_s / self.parameters.real_time_factor
                self._stopping.wait(max(0.0, due_s - time.monotonic()))
            before_s = time.monotonic()

    def _may_tick(self) -> bool:
        return self.parameters.ticks == 0 or self._ticks < self.parameters.ticks

    def _on_end(self, _: object, error: Exception | None) -> None:
        if error is not None:
            self._problem = str(error)
            self.get_logger().error(self._problem)
            self.failed = True
        elif not self._stopping.is_set():
            self.get_logger().info(f'{self._ticks} ticks are done')
        if not self._stopping.is_set():
            rclpy.try_shutdown()

    def _publish(self, moment: Moment) -> None:
        self._time.publish(Clock(clock=conversions.time_to_msg(moment.stamp_ns)))
        if not moment.vehicles:
            return
        self._moments += 1
        for name, observation in moment.vehicles.items():
            seen = observation.frame, observation.images, observation.speed
            self._vehicles[name].publish(*seen, moment.stamp_ns)
            self._drive(name, observation, moment.stamp_ns)
        if self.parameters.dump:
            self._dump(moment.vehicles)

    def _drive(self, name: str, observation: Observation, stamp_ns: int) -> None:
        """Take from the battery what driving took since the last picture (modelled)."""
        section, battery = self._config.vehicles[name], self._batteries[name]
        power_w = traction_watts(section, observation.speed)
        battery.drain(power_w * self._config.step_s * self._config.ticks_per_picture)
        self._vehicles[name].publish_battery(battery.soc, battery.capacity_j, power_w, stamp_ns)

    def _dump(self, vehicles: Mapping[str, Observation]) -> None:
        assert self._simulation is not None
        for name, observation in vehicles.items():
            folder = Path(self.parameters.dump).expanduser()
            folder /= str(self._simulation.actor_ids[name])
            write_agent_frame(folder, observation.frame, observation.images)


def traction_watts(vehicle: VehicleSection, speed: float) -> float:
    """Modelled power of a vehicle at a speed in m/s: a constant share and one per metre."""
    return vehicle.auxiliary_w + vehicle.drive_wh_per_km * _WH_PER_KM_TO_J_PER_M * speed


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros carla_bridge``."""
    return run_node(CarlaBridgeNode, args)


if __name__ == '__main__':
    sys.exit(main())
