"""What a co-simulation shall be: our YAML, or a scenario file of OpenCDA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lapdtr_ros.errors import LapdtrError

CarlaPose = tuple[float, float, float, float, float, float]

Name = Annotated[str, Field(pattern=r'^[a-zA-Z_]\w*$')]
_OPENCDA_KEYS = ('single_cav_list', 'scenario')


class CosimulationError(LapdtrError):
    """A configuration that makes no sense, or a server that cannot be worked with."""


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


class VehicleSection(_Section):
    """One connected vehicle.

    Attributes:
        spawn: ``(x, y, z, roll, yaw, pitch)``, metres and degrees; a free spawn point of the map,
            drawn with the seed, when None.
        blueprint: what it looks like.
        battery_kwh: energy of the full battery.
        soc: share that is left at the start.
        drive_wh_per_km: what driving takes.
        auxiliary_w: what it takes standing still.
    """

    spawn: CarlaPose | None = None
    blueprint: str = 'vehicle.lincoln.mkz_2020'
    battery_kwh: Annotated[float, Field(gt=0)] = 60.0
    soc: Annotated[float, Field(ge=0, le=1)] = 0.9
    drive_wh_per_km: Annotated[float, Field(ge=0)] = 160.0
    auxiliary_w: Annotated[float, Field(ge=0)] = 400.0


class CosimulationConfig(_Section):
    """A co-simulation.

    Attributes:
        host: of the CARLA server.
        port: of the CARLA server.
        timeout_s: longest wait for an answer; loading a town takes most of a minute.
        town: town to load; the one that is loaded when empty.
        seed: of spawn points and traffic.
        step_s: simulated time per tick.
        ticks_per_picture: cameras take a picture every so many ticks.
        traffic: vehicles that are not connected.
        traffic_manager_port: port of the traffic manager.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        vehicles: connected vehicles by name.
    """

    host: str = 'localhost'
    port: Annotated[int, Field(ge=1, le=65535)] = 2000
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    town: str = ''
    seed: Annotated[int, Field(ge=0)] = 0
    step_s: Annotated[float, Field(gt=0, le=0.1)] = 0.05
    ticks_per_picture: Annotated[int, Field(ge=1)] = 2
    traffic: Annotated[int, Field(ge=0)] = 30
    traffic_manager_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    width: Annotated[int, Field(ge=16)] = 800
    height: Annotated[int, Field(ge=16)] = 600
    vehicles: Annotated[dict[Name, VehicleSection], Field(min_length=1)]


def load_config(path: Path) -> CosimulationConfig:
    """Read a co-simulation from our YAML, or from a scenario file of OpenCDA.

    Raises:
        CosimulationError: missing, not YAML, or a wrong key or value, all of them named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CosimulationError(f'{path}: {error.strerror}; give a co-simulation YAML') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CosimulationError(f'{path}: not a YAML file: {error}') from None
    if not isinstance(content, dict):
        raise CosimulationError(f'{path}: expected keys and values, such as vehicles')
    if any(key in content for key in _OPENCDA_KEYS):
        content = _from_opencda(path, content)
    try:
        return CosimulationConfig.model_validate(content)
    except ValidationError as error:
        lines = [f'{path}: the co-simulation cannot be used:']
        for problem in error.errors():
            key = '.'.join(str(part) for part in problem['loc']) or 'file'
            lines.append(f'  {key}: {problem["msg"]} (got {problem["input"]!r})')
        raise CosimulationError('\n'.join(lines)) from None


def _from_opencda(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys for those of OpenCDA that mean something here; the rest is its own business.

    OpenCDA merges a scenario with its ``default.yaml``; what is missing gets our defaults. Spawn
    positions are read as its code reads them: x, y, z, roll, yaw, pitch.
    """
    world = _mapping(path, content, 'world')
    scenario = _mapping(path, content, 'scenario')
    cars = scenario.get('single_cav_list')
    if not isinstance(cars, list) or not cars:
        raise CosimulationError(f'{path}: scenario.single_cav_list is empty: name the vehicles')
    vehicles: dict[str, Any] = {}
    for number, car in enumerate(cars):
        if not isinstance(car, dict) or 'spawn_position' not in car:
            raise CosimulationError(
                f'{path}: scenario.single_cav_list[{number}].spawn_position is missing'
            )
        name = str(car.get('name') or f'cav_{number}').replace('-', '_')
        if name in vehicles:
            raise CosimulationError(f'{path}: two vehicles are named {name!r}; rename one')
        vehicles[name] = {'spawn': car['spawn_position']}
    found = {
        'port': world.get('client_port'),
        'seed': world.get('seed'),
        'step_s': world.get('fixed_delta_seconds'),
        'town': scenario.get('town'),
        'traffic': _traffic(_mapping(path, content, 'carla_traffic_manager')),
    }
    return {'vehicles': vehicles, **{k: v for k, v in found.items() if v is not None}}


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise CosimulationError(f'{path}: {key}: expected keys and values, got {value!r}')
    return value


def _traffic(manager: Mapping[str, Any]) -> int | None:
    """Number of background vehicles; lists of places count as that many."""
    vehicles = manager.get('vehicle_list')
    if isinstance(vehicles, list):
        return len(vehicles)
    ranges = manager.get('range')
    if vehicles is None and isinstance(ranges, list):
        return sum(int(area[-1]) for area in ranges if isinstance(area, list) and len(area) == 7)
    return vehicles if isinstance(vehicles, int) else None
